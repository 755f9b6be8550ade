package action

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

// Definitions that are registered at once are counted one after the other, per
// tenant, and one is current.
func TestVersionsAreCounted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool
	var store Store
	register := func(tenant string, d Definition) (r Registered, fresh bool, err error) {
		err = pg.InTx(t.Context(), pool, func(tx pgx.Tx) error {
			r, fresh, err = store.Register(t.Context(), tx, tenant, "olga", d)
			return err
		})
		return r, fresh, err
	}
	const many = 8
	var all sync.WaitGroup
	var mu sync.Mutex
	var versions []int32
	for i := range many {
		all.Go(func() {
			d := with(t, valid, "costMicros", fmt.Sprint(i))
			r, fresh, err := register("default", d)
			if err != nil || !fresh {
				t.Errorf("version %d, %v, %v", r.Version, fresh, err)
			}
			mu.Lock()
			versions = append(versions, r.Version)
			mu.Unlock()
		})
	}
	all.Wait()
	slices.Sort(versions)
	for i, v := range versions {
		if v != int32(i)+1 {
			t.Fatalf("versions %v", versions)
		}
	}
	current, err := store.Get(t.Context(), pool, "default", "ticket.close")
	if err != nil || current.Version != many || !current.Current || current.CreatedBy != "olga" {
		t.Errorf("current is %+v, %v", current, err)
	}
	first, err := store.Version(t.Context(), pool, "default", "ticket.close", 1)
	if err != nil || first.Current || first.Digest == current.Digest {
		t.Errorf("the first is %+v, %v", first, err)
	}
	if digest, err := first.Definition.Digest(); digest != first.Digest || err != nil {
		t.Errorf("what is stored has another digest: %v", err)
	}
	if _, err := store.Version(t.Context(), pool, "default", "ticket.close", many+1); refusal(err) != "ACTION_NOT_FOUND" {
		t.Errorf("a version that is not there: %v", err)
	}
	if _, err := store.Get(t.Context(), pool, "other", "ticket.close"); refusal(err) != "ACTION_NOT_FOUND" {
		t.Errorf("another tenant's action: %v", err)
	}
	if r, fresh, err := register("other", with(t, valid, "costMicros", "0")); err != nil || r.Version != 1 || !fresh {
		t.Errorf("another tenant's version %d, %v", r.Version, err)
	}
	if r, fresh, err := register("default", current.Definition); err != nil || fresh || r.Version != many {
		t.Errorf("the current one again: version %d, new %v, %v", r.Version, fresh, err)
	}
	err = pg.InTx(t.Context(), pool, func(tx pgx.Tx) error { return store.Unregister(t.Context(), tx, "default", "ticket.close") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get(t.Context(), pool, "default", "ticket.close"); refusal(err) != "ACTION_NOT_FOUND" {
		t.Errorf("an unregistered action: %v", err)
	}
	if _, err := store.Version(t.Context(), pool, "default", "ticket.close", 1); err != nil {
		t.Errorf("a version of an unregistered action: %v", err)
	}
	if left, _, err := store.List(t.Context(), pool, "default", 10, ""); err != nil || len(left) != 0 {
		t.Errorf("listed %v, %v", left, err)
	}
	if _, _, err := store.List(t.Context(), pool, "default", 10, "!"); refusal(err) != "PAGE_TOKEN_INVALID" {
		t.Errorf("a token that nobody gave: %v", err)
	}
}

func TestSagasFitTheirSteps(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool
	register := func(d Definition) error {
		return pg.InTx(context.Background(), pool, func(tx pgx.Tx) error {
			_, _, err := Store{}.Register(t.Context(), tx, "default", "olga", d)
			return err
		})
	}
	forget := with(t, `{"name": "drop", "description": "x", "tier": "IRREVERSIBLE", "irreversibleBecause": "gone", "memory": {"operation": "FORGET", "fields": {"id": {"constant": "x"}}}}`, "costMicros", "0")
	for _, d := range []Definition{with(t, validMemory, "costMicros", "0"), forget} {
		if err := register(d); err != nil {
			t.Fatal(err)
		}
	}
	const keep, drop = `{"step": {"action": "keep", "arguments": {"text": {"constant": "x"}}}}`, `{"step": {"action": "drop"}}`
	for name, c := range map[string]struct{ tier, steps, field string }{
		"reversible":                 {`"REVERSIBLE"`, `[` + keep + `]`, ""},
		"a tier that its steps lack": {`"READ"`, `[` + keep + `]`, "tier"},
		"an irreversible step":       {`"REVERSIBLE"`, `[` + keep + `,` + drop + `]`, "tier"},
		"not last":                   {`"REVERSIBLE"`, `[` + drop + `,` + keep + `]`, "saga.steps[0]"},
		"that is compensated":        {`"REVERSIBLE"`, `[{"step": {"action": "drop"}, "compensation": {"action": "keep", "arguments": {"text": {"result": "/text"}}}},` + keep + `]`, ""},
		"a missing argument":         {`"REVERSIBLE"`, `[{"step": {"action": "keep"}}]`, "saga.steps[0].step.arguments"},
		"one too many":               {`"REVERSIBLE"`, `[{"step": {"action": "keep", "arguments": {"text": {"constant": 1}, "more": {"constant": 1}}}}]`, "saga.steps[0].step.arguments"},
		"a step that is not there":   {`"REVERSIBLE"`, `[{"step": {"action": "absent"}}]`, "saga.steps[0].step.action"},
	} {
		d := with(t, validSaga, "saga/steps", c.steps)
		if err := json.Unmarshal([]byte(c.tier), &d.Tier); err != nil {
			t.Fatal(err)
		}
		if err := register(d); field(err) != c.field || (c.field != "") != (refusal(err) == "ACTION_INVALID") {
			t.Errorf("%s: %v about %q, not %q", name, err, field(err), c.field)
		}
	}
	if err := register(with(t, validSaga, "name", `"nested"`)); err != nil {
		t.Fatal(err)
	}
	if err := register(with(t, `{"name": "outer", "description": "x", "tier": "REVERSIBLE", "saga": {"steps": [{"step": {"action": "nested"}}]}}`, "costMicros", "0")); field(err) != "saga.steps[0].step.action" {
		t.Errorf("a saga in a saga: %v", err)
	}
}
