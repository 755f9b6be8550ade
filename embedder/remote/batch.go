package remote

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/whence-db/whence/embedder"
)

// job is one Embed call. Each index belongs to one group and so to one
// goroutine, which alone writes its vector.
type job struct {
	m       *Model
	inputs  []string
	vectors [][]float32

	mu     sync.Mutex
	failed map[int]*embedder.Error // guarded by mu
}

func newJob(m *Model, texts []string) *job {
	j := &job{m: m, inputs: make([]string, len(texts)), vectors: make([][]float32, len(texts)), failed: make(map[int]*embedder.Error)}
	for i, text := range texts {
		if strings.TrimSpace(text) == "" {
			j.failed[i] = m.emptyText()
			continue
		}
		j.inputs[i] = m.documentPrefix + clean(text)
	}
	return j
}

// pack divides the indexes into groups for one request each. A text that
// exceeds the token limit by itself gets a request by itself.
func (j *job) pack() (groups [][]int) {
	var group []int
	tokens, most := 0, j.m.maxBatchTokens
	if share := j.m.pace.share(); share > 0 {
		most = min(most, share)
	}
	for i, input := range j.inputs {
		if j.failed[i] != nil {
			continue
		}
		n := tokensOf(input)
		if len(group) > 0 && (len(group) == j.m.maxBatch || tokens+n > most) {
			groups, group, tokens = append(groups, group), nil, 0
		}
		group, tokens = append(group, i), tokens+n
	}
	if len(group) > 0 {
		groups = append(groups, group)
	}
	return groups
}

// tokensOf reckons: a token has three bytes or more in most languages.
func tokensOf(inputs ...string) (n int) {
	for _, input := range inputs {
		n += len(input)/3 + 1
	}
	return n
}

// run embeds a group and records the outcome of each of its texts.
func (j *job) run(ctx context.Context, group []int) {
	fail := j.request(ctx, group, j.m.retries)
	if fail == nil {
		return
	}
	if !fail.divisible {
		j.fail(group, fail)
		return
	}
	(&search{job: j}).divide(ctx, group, fail)
}

// request makes one request for a group. On success every text of the group has
// a vector or a failure of its own.
func (j *job) request(ctx context.Context, group []int, retries int) *failure {
	inputs := make([]string, len(group))
	for k, i := range group {
		inputs[k] = j.inputs[i]
	}
	vectors, bad, fail := j.m.send(ctx, j.m.documents, errand{inputs: inputs, retries: retries, wait: j.m.maxPace})
	if fail != nil {
		return fail
	}
	for k, i := range group {
		j.vectors[i] = vectors[k]
		if bad[k] != nil {
			j.fail(group[k:k+1], &failure{Error: bad[k]})
		}
	}
	return nil
}

func (j *job) fail(group []int, f *failure) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, i := range group {
		j.failed[i] = f.Error
	}
}

// result is called when no goroutine of the job is left.
func (j *job) result() ([][]float32, error) {
	if len(j.failed) == 0 {
		return j.vectors, nil
	}
	if whole := j.outage(); whole != nil {
		return nil, whole
	}
	return j.vectors, &embedder.BatchError{Failed: j.failed, Total: len(j.inputs)}
}

// outage returns the one failure that all texts share when it is temporary, so
// that the caller sees a server that is down and not a list of texts.
func (j *job) outage() (whole *embedder.Error) {
	if len(j.failed) < len(j.inputs) {
		return nil
	}
	for _, i := range slices.Sorted(maps.Keys(j.failed)) {
		e := j.failed[i]
		switch {
		case !e.Temporary, whole != nil && (e.Reason != whole.Reason || e.Status != whole.Status):
			return nil
		case whole == nil || e.RetryAfter > whole.RetryAfter:
			whole = e
		}
	}
	return whole
}

// search finds the texts of a group that the server cannot take.
type search struct {
	*job
	alive bool     // the server has embedded something since the group failed
	over  *failure // set: the server is at fault, no further text is tried
}

// divide is called with a group that failed as a whole.
func (s *search) divide(ctx context.Context, group []int, fail *failure) {
	if len(group) == 1 {
		s.condemn(ctx, group, fail)
		return
	}
	half := len(group) / 2
	s.try(ctx, group[:half])
	s.try(ctx, group[half:])
}

func (s *search) try(ctx context.Context, group []int) {
	if s.over != nil {
		s.fail(group, s.over)
		return
	}
	fail := s.request(ctx, group, 0)
	switch {
	case fail == nil:
		s.alive = true
	case fail.divisible:
		s.divide(ctx, group, fail)
	default:
		s.over = fail
		s.fail(group, fail)
	}
}

// condemn blames a single text, once a harmless one has gone through.
func (s *search) condemn(ctx context.Context, text []int, fail *failure) {
	if !s.alive {
		harmless := errand{inputs: []string{s.m.documentPrefix + canary}, harmless: true, wait: s.m.maxPace}
		if _, _, doubt := s.m.send(ctx, s.m.documents, harmless); doubt != nil {
			s.over = doubt.accuseNobody()
			s.fail(text, s.over)
			return
		}
		s.alive = true
	}
	s.fail(text, fail)
}
