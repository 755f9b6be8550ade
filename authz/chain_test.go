package authz

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/whence-db/whence"
)

// may is what a scope as it is written down allows, worked out by rote: the oracle
// that scopes are held against. It shares no code with them.
func (s ScopeSpec) may(r row) bool {
	for i, k := range []string{"k0", "k1"} {
		if want, ok := s.Filter[k]; ok && r.attr[i] != want {
			return false
		}
	}
	table := slices.Contains(s.Tables, r.table) || s.AllTables && !slices.Contains(s.DenyTables, r.table)
	subject := slices.Contains(s.Subjects, r.subject) || s.AllSubjects && !slices.Contains(s.DenySubjects, r.subject)
	return table && subject
}

// does is the same for an action, at a tier, with so many hits.
func (s ScopeSpec) does(a Action, tier Tier, topK int) bool {
	order := map[Tier]int{"": 0, TierRead: 0, TierReversible: 1, TierIrreversible: 2}
	return slices.Contains(s.Actions, a) && order[tier] <= order[s.Tier] && (s.TopK == 0 || topK <= s.TopK)
}

// draw makes a spec by chance, often one that lies near another.
func draw(r *rand.Rand, near ScopeSpec) ScopeSpec {
	if r.IntN(8) > 0 {
		s := near
		s.Tables, s.Subjects = slices.Clone(near.Tables), slices.Clone(near.Subjects)
		s.DenyTables, s.DenySubjects = slices.Clone(near.DenyTables), slices.Clone(near.DenySubjects)
		s.Actions, s.Filter = slices.Clone(near.Actions), maps.Clone(near.Filter)
		for range r.IntN(3) {
			change(r, &s)
		}
		return s
	}
	s := ScopeSpec{AllTables: r.IntN(2) == 0, AllSubjects: r.IntN(2) == 0}
	for range 6 {
		change(r, &s)
	}
	return s
}

func change(r *rand.Rand, s *ScopeSpec) {
	toggle := func(all bool, named, denied []string, from []string) ([]string, []string) {
		v := from[r.IntN(len(from))]
		list := &named
		if all {
			list = &denied
		}
		if i := slices.Index(*list, v); i >= 0 {
			*list = slices.Delete(*list, i, i+1)
		} else {
			*list = append(*list, v)
		}
		return named, denied
	}
	switch r.IntN(8) {
	case 0, 1:
		named, denied := toggle(s.AllTables, texts(s.Tables), texts(s.DenyTables), texts(tables[:3]))
		s.Tables, s.DenyTables = names(named), names(denied)
	case 2, 3:
		s.Subjects, s.DenySubjects = toggle(s.AllSubjects, s.Subjects, s.DenySubjects, subjects[:2])
	case 4:
		a := Actions()[r.IntN(len(Actions()))]
		if i := slices.Index(s.Actions, a); i >= 0 {
			s.Actions = slices.Delete(s.Actions, i, i+1)
		} else {
			s.Actions = append(s.Actions, a)
		}
	case 5:
		if s.Filter == nil {
			s.Filter = map[string]string{}
		}
		s.Filter[[]string{"k0", "k1"}[r.IntN(2)]] = values[1+r.IntN(2)]
	case 6:
		s.Tier = tiers[r.IntN(3)]
	case 7:
		s.TopK = r.IntN(4)
	}
}

func texts(ts []whence.TableName) (out []string) {
	for _, t := range ts {
		out = append(out, string(t))
	}
	return out
}

func names(ts []string) (out []whence.TableName) {
	for _, t := range ts {
		out = append(out, whence.TableName(t))
	}
	return out
}

// contained tells whether the child may nothing that the parent may not, and names
// the first thing that it may.
func contained(child, parent ScopeSpec, rows []row) any {
	for _, r := range rows {
		if child.may(r) && !parent.may(r) {
			return r
		}
	}
	for _, a := range Actions() {
		for _, tier := range tiers {
			for k := 1; k < 5; k++ {
				if child.does(a, tier, k) && !parent.does(a, tier, k) {
					return []any{a, tier, k}
				}
			}
		}
	}
	return nil
}

// TestChainsOnlyNarrow makes a hundred thousand chains as tasks do: a wish within
// bounds, then delegations, each within the last. What each may is worked out by
// rote for every row and action there can be.
func TestChainsOnlyNarrow(t *testing.T) {
	t.Parallel()
	rows := universe()
	r := rand.New(rand.NewPCG(7, 7))
	var granted, refused, emptied, deep int
	for range 100_000 {
		user := draw(r, ScopeSpec{AllTables: true, AllSubjects: true, Actions: Actions(), Tier: TierIrreversible})
		grant := draw(r, user)
		want := draw(r, grant)
		given, err := Effective(want, []Bound{{"the user", user}, {"the grant", grant}})
		if err != nil {
			if !errors.Is(err, whence.ErrDenied) {
				t.Fatalf("%v\nuser %+v\ngrant %+v\nwant %+v", err, user, grant, want)
			}
			emptied++
			if left := both(want, user, grant, rows); left {
				t.Fatalf("refused though something is left: %v\nuser %+v\ngrant %+v\nwant %+v", err, user, grant, want)
			}
			continue
		}
		for _, bound := range []ScopeSpec{user, grant, want} {
			if over := contained(given, bound, rows); over != nil {
				t.Fatalf("the task may %v\nbound %+v\ntask %+v", over, bound, given)
			}
		}
		scope, err := newScope(given) // as a token's verifier does
		if err != nil {
			t.Fatal(err)
		}
		for depth := range 3 {
			wish := draw(r, scope.Spec())
			child, err := scope.Narrow(wish)
			if err != nil {
				refused++
				break
			}
			granted++
			deep += depth / 2
			if over := contained(child.Spec(), scope.Spec(), rows); over != nil {
				t.Fatalf("the child may %v\nparent %+v\nchild %+v", over, scope.Spec(), child.Spec())
			}
			if over := contained(wish, child.Spec(), rows); over != nil {
				t.Fatalf("silently cut by %v\nwish %+v\nchild %+v", over, wish, child.Spec())
			}
			scope = child
		}
	}
	if granted < 50_000 || refused < 20_000 || emptied < 5_000 || deep < 10_000 {
		t.Errorf("%d granted, %d refused, %d left with nothing, %d at depth 3: the property was not put to the test", granted, refused, emptied, deep)
	}
}

// both tells whether tables, subjects and actions are left that all three allow.
func both(want, user, grant ScopeSpec, rows []row) bool {
	for k, v := range want.Filter {
		for _, b := range []ScopeSpec{user, grant} {
			if got, ok := b.Filter[k]; ok && got != v {
				return false
			}
		}
	}
	for k, v := range user.Filter {
		if got, ok := grant.Filter[k]; ok && got != v {
			return false
		}
	}
	all := func(ok func(ScopeSpec) bool) bool { return ok(want) && ok(user) && ok(grant) }
	table := slices.ContainsFunc(rows, func(r row) bool {
		return all(func(s ScopeSpec) bool {
			return slices.Contains(s.Tables, r.table) || s.AllTables && !slices.Contains(s.DenyTables, r.table)
		})
	})
	subject := slices.ContainsFunc(rows, func(r row) bool {
		return all(func(s ScopeSpec) bool {
			return slices.Contains(s.Subjects, r.subject) || s.AllSubjects && !slices.Contains(s.DenySubjects, r.subject)
		})
	})
	action := slices.ContainsFunc(Actions(), func(a Action) bool { return all(func(s ScopeSpec) bool { return slices.Contains(s.Actions, a) }) })
	return table && subject && action
}
