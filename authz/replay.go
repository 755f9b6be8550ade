package authz

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/whence-db/whence"
)

type proofID [sha256.Size]byte

// taken is a proof that is remembered, with the thumbprint of its key.
type taken struct {
	id  proofID
	key string
}

// One key fills no more than a share of the memory, or its holder could lock all
// others out.
const (
	shareOfMemory = 20
	leastShare    = 100
)

// replayMemory remembers the proofs that were taken for as long as they could be
// taken again. It forgets none of them early: when it is full, nothing is taken.
type replayMemory struct {
	capacity int

	mu sync.Mutex
	// seen and bySecond hold the same proofs, bySecond by the second in which they
	// are to be forgotten; guarded by mu.
	seen     map[proofID]struct{}
	bySecond map[int64][]taken
	// of counts the proofs of each key; guarded by mu.
	of map[string]int
	// forgotten is the last second that was; guarded by mu. A proof as old as that
	// may have been taken, should the clock have been set back.
	forgotten int64
}

func newReplayMemory(capacity int) *replayMemory {
	return &replayMemory{capacity: capacity, seen: make(map[proofID]struct{}), bySecond: make(map[int64][]taken), of: make(map[string]int)}
}

// take remembers a proof that is good until then, or refuses it.
func (m *replayMemory) take(thumbprint, id string, until, now time.Time) error {
	key := proofID(sha256.Sum256([]byte(thumbprint + "." + id))) // a thumbprint has no dot and one length
	second := until.Unix() + 1                                   // it is good during the second of until
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(now.Unix())
	if second <= m.forgotten {
		return badProof(errTooOld)
	}
	if _, ok := m.seen[key]; ok {
		return refuse("PROOF_REPLAYED", "this DPoP proof has been used; make a new one, with a new jti, for each request", nil)
	}
	if m.of[thumbprint] >= max(m.capacity/shareOfMemory, leastShare) {
		return &whence.Error{Kind: whence.ErrExhausted, Reason: "PROOF_RATE_EXCEEDED", RetryAfter: time.Second,
			Message: "more calls came within a minute with proofs of this key than one key may make; send fewer"}
	}
	if len(m.seen) >= m.capacity {
		return &whence.Error{Kind: whence.ErrUnavailable, Reason: "PROOF_REPLAY_MEMORY_FULL", RetryAfter: time.Second,
			Message: "more DPoP proofs came within a minute than can be remembered; send a new proof later, or fewer calls"}
	}
	m.seen[key] = struct{}{}
	m.of[thumbprint]++
	m.bySecond[second] = append(m.bySecond[second], taken{key, thumbprint})
	return nil
}

// forget drops what is due by this second.
func (m *replayMemory) forget(now int64) {
	if now <= m.forgotten {
		return
	}
	for second, keys := range m.bySecond { // at most one for each second of a proof's life
		if second > now {
			continue
		}
		for _, k := range keys {
			delete(m.seen, k.id)
			if m.of[k.key]--; m.of[k.key] == 0 {
				delete(m.of, k.key)
			}
		}
		delete(m.bySecond, second)
	}
	m.forgotten = now
}
