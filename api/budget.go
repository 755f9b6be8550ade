package api

import (
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/query"
)

// budget leaves out what nothing bounds; calls always are.
func budget(b gateway.Budget) *v1.Budget {
	return &v1.Budget{Calls: meter(b, authz.Calls), ExpireTime: timestamp(b.Deadline),
		Writes: meter(b, authz.Writes), Rows: meter(b, authz.Rows), Concurrency: meter(b, authz.Concurrency),
		Bytes: longMeter(b, authz.Bytes), EmbeddingTokens: longMeter(b, authz.EmbeddingTokens), SpendMicros: longMeter(b, authz.Spend)}
}

func meter(b gateway.Budget, m authz.Meter) *v1.Meter {
	if b.Remaining[m] == authz.Unlimited {
		return nil
	}
	out := &v1.Meter{Used: count(b.Used[m]), Remaining: count(b.Remaining[m])}
	if b.Limit[m] != authz.Unlimited {
		out.Limit = proto.Uint32(count(b.Limit[m]))
	}
	return out
}

func longMeter(b gateway.Budget, m authz.Meter) *v1.LongMeter {
	if b.Remaining[m] == authz.Unlimited {
		return nil
	}
	out := &v1.LongMeter{Used: b.Used[m], Remaining: b.Remaining[m]}
	if b.Limit[m] != authz.Unlimited {
		out.Limit = proto.Int64(b.Limit[m])
	}
	return out
}

// bounds reads the limits of a request: those of calls, 0 when it has none, and of
// the other meters.
func bounds(b *v1.BudgetLimits) (calls int64, l authz.Limits) {
	l = authz.Limits{}
	short := func(m authz.Meter, n *uint32) {
		if n != nil {
			l[m] = int64(*n)
		}
	}
	long := func(m authz.Meter, n *int64) {
		if n != nil {
			l[m] = *n
		}
	}
	if b != nil {
		short(authz.Writes, b.Writes)
		short(authz.Rows, b.Rows)
		short(authz.Concurrency, b.Concurrency)
		long(authz.Bytes, b.Bytes)
		long(authz.EmbeddingTokens, b.EmbeddingTokens)
		long(authz.Spend, b.SpendMicros)
	}
	return int64(b.GetCalls()), l
}

func boundsMessage(calls int64, l authz.Limits) *v1.BudgetLimits {
	out := &v1.BudgetLimits{Calls: proto.Uint32(count(calls))}
	for m, n := range l {
		switch m {
		case authz.Writes:
			out.Writes = proto.Uint32(count(n))
		case authz.Rows:
			out.Rows = proto.Uint32(count(n))
		case authz.Concurrency:
			out.Concurrency = proto.Uint32(count(n))
		case authz.Bytes:
			out.Bytes = proto.Int64(n)
		case authz.EmbeddingTokens:
			out.EmbeddingTokens = proto.Int64(n)
		case authz.Spend:
			out.SpendMicros = proto.Int64(n)
		case authz.Calls: // set above
		}
	}
	return out
}

const (
	// mostReply is what is held of a budget of bytes for a reply; there are none larger.
	mostReply = 8 << 20
	// mostVersions is the largest page of versions.
	mostVersions = 1000
	// tokenSlack is what a model's server may count beside the tokens of a text, of
	// which no more than a byte each can be.
	tokenSlack = 16
)

// worst is the most that a call may use beside calls, by its request.
func worst(req proto.Message) authz.Amounts {
	a := authz.Amounts{authz.Bytes: mostReply}
	switch r := req.(type) {
	case *v1.QueryRequest:
		a[authz.Rows] = int64(r.GetLimit())
		if a[authz.Rows] == 0 {
			a[authz.Rows] = query.DefaultLimit
		}
		a[authz.EmbeddingTokens] = int64(len(r.GetText())) + tokenSlack
	case *v1.GetRecordRequest:
		a[authz.Rows] = 1
	case *v1.ListVersionsRequest:
		a[authz.Rows] = mostVersions
		if n := r.GetPageSize(); n != 0 {
			a[authz.Rows] = int64(n)
		}
	case *v1.RememberRequest, *v1.ForgetRequest:
		a[authz.Rows], a[authz.Writes] = 1, 1
	}
	return a
}

// writes is how often a request writes that does no more than its name says.
func writes(req proto.Message) int64 { return worst(req)[authz.Writes] }

// rows is how many hits, records and versions a reply has.
func rows(reply any) int64 {
	switch r := reply.(type) {
	case *v1.QueryResponse:
		return int64(len(r.GetHits()))
	case *v1.GetRecordResponse, *v1.RememberResponse, *v1.ForgetResponse:
		return 1
	case *v1.ListVersionsResponse:
		return int64(len(r.GetVersions()))
	}
	return 0
}
