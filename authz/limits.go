package authz

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/whence-db/whence"
)

// Meter is one thing that a budget bounds.
type Meter int

// The meters, in the order in which the database keeps them.
const (
	Calls           Meter = iota // calls
	Writes                       // calls that write: notes, executions, undoing
	Rows                         // hits, records and rows read and written
	Bytes                        // of replies, and of what goes through to upstreams
	EmbeddingTokens              // embedded for questions
	Spend                        // money, in millionths
	Concurrency                  // calls under way at the same time
	meterCount
)

var meterNames = [meterCount]string{"calls", "writes", "rows", "bytes", "embeddingTokens", "spendMicros", "concurrency"}

// Meters lists them.
func Meters() []Meter {
	return []Meter{Calls, Writes, Rows, Bytes, EmbeddingTokens, Spend, Concurrency}
}

// String is the meter's name in requests and errors.
func (m Meter) String() string { return meterNames[m] }

// MarshalText writes the name.
func (m Meter) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a name.
func (m *Meter) UnmarshalText(b []byte) error {
	i := slices.Index(meterNames[:], string(b))
	if i < 0 {
		return whence.Invalid("budget", "BUDGET_INVALID", fmt.Sprintf("a budget has no %q; it has %s", b, strings.Join(meterNames[:], ", ")))
	}
	*m = Meter(i)
	return nil
}

// Unlimited is the amount of a meter that nothing bounds.
const Unlimited = math.MaxInt64

// Amounts has a number for each meter.
type Amounts [meterCount]int64

// Plus adds; what is unlimited stays so.
func (a Amounts) Plus(b Amounts) Amounts {
	for m := range a {
		if a[m] != Unlimited {
			a[m] += b[m]
		}
	}
	return a
}

// Minus subtracts; what is unlimited stays so.
func (a Amounts) Minus(b Amounts) Amounts {
	for m := range a {
		if a[m] != Unlimited {
			a[m] -= b[m]
		}
	}
	return a
}

// Min takes the smaller of each.
func (a Amounts) Min(b Amounts) Amounts {
	for m := range a {
		a[m] = min(a[m], b[m])
	}
	return a
}

// Literal writes them as Postgres writes an array.
func (a Amounts) Literal() string {
	parts := make([]string, len(a))
	for m, n := range a {
		parts[m] = fmt.Sprint(n)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// Limits bound some of the meters; those that are absent are unbounded.
type Limits map[Meter]int64

// Amounts writes the bounds out.
func (l Limits) Amounts() (a Amounts) {
	for m := range a {
		a[m] = Unlimited
	}
	for m, n := range l {
		a[m] = n
	}
	return a
}

// Least is bounded where either is, by the smaller bound.
func (l Limits) Least(other Limits) Limits {
	out := maps.Clone(l)
	for m, n := range other {
		if was, ok := out[m]; !ok || n < was {
			if out == nil {
				out = Limits{}
			}
			out[m] = n
		}
	}
	return out
}

// Validate tells what is wrong with bounds beside that of the calls.
func (l Limits) Validate() error {
	for _, m := range slices.Sorted(maps.Keys(l)) {
		least, field := int64(0), "budget."+m.String()
		if m == Calls || m == Concurrency {
			least = 1
		}
		if l[m] < least || l[m] == Unlimited {
			return whence.Invalid(field, "BUDGET_INVALID", fmt.Sprintf("%s is at least %d; leave it out for no bound of its own", field, least))
		}
	}
	return nil
}

// ReadLimits is the inverse of json.Marshal.
func ReadLimits(b []byte) (l Limits, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	return l, json.Unmarshal(b, &l)
}

// LimitsOf is the inverse of Limits.Amounts.
func LimitsOf(a Amounts) Limits {
	l := Limits{}
	for m, n := range a {
		if n != Unlimited {
			l[Meter(m)] = n
		}
	}
	return l
}
