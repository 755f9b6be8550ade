package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/whence-db/whence/authz"
)

// taskWish is a task as authorization_details say it, asked for or granted.
type taskWish struct {
	authz.ScopeSpec
	Budget   map[string]int64 `json:"budget,omitempty"`
	Purpose  string           `json:"purpose"`
	Lifetime string           `json:"lifetime,omitempty"`
}

func (c *tokenExchange) wish() taskWish {
	w := taskWish{ScopeSpec: c.spec(), Purpose: c.Purpose}
	w.Type = authz.DetailType
	w.Budget = maps.Clone(c.Budget)
	if c.Calls != 0 {
		if w.Budget == nil {
			w.Budget = map[string]int64{}
		}
		w.Budget["calls"] = c.Calls
	}
	if c.Lifetime != 0 {
		w.Lifetime = c.Lifetime.String()
	}
	return w
}

// lessThan says in a line what was asked for and not granted; empty when all was.
// What the wish leaves to the grant is no less: calls and lifetime.
func lessThan(asked, got taskWish) string {
	var less []string
	add := func(format string, args ...any) { less = append(less, fmt.Sprintf(format, args...)) }
	part := func(s string) {
		if s != "" {
			less = append(less, s)
		}
	}
	part(lessOf("tables", asked.AllTables, got.AllTables, asked.Tables, got.Tables, asked.DenyTables, got.DenyTables))
	part(lessOf("subjects", asked.AllSubjects, got.AllSubjects, asked.Subjects, got.Subjects, asked.DenySubjects, got.DenySubjects))
	part(lessOf("actions", false, false, asked.Actions, got.Actions, nil, nil))
	for _, name := range slices.Sorted(maps.Keys(got.Filter)) {
		if _, ok := asked.Filter[name]; !ok {
			add("only rows whose %s is %q", name, got.Filter[name])
		}
	}
	if got.TopK > 0 && (asked.TopK == 0 || got.TopK < asked.TopK) {
		add("at most %d hits of a query", got.TopK)
	}
	for _, name := range slices.Sorted(maps.Keys(asked.Budget)) {
		if n, of := got.Budget[name], asked.Budget[name]; n < of {
			add("%d %s of %d", n, name, of)
		}
	}
	if want, err := time.ParseDuration(asked.Lifetime); err == nil {
		if given, err := time.ParseDuration(got.Lifetime); err == nil && given < want {
			add("%s of %s", given, want)
		}
	}
	if asked.Tier != got.Tier && got.Tier != "" {
		add("actions up to the tier %s", got.Tier)
	}
	return strings.Join(less, "; ")
}

// lessOf compares what was asked for and granted of one kind.
func lessOf[T ~string](kind string, askedAll, gotAll bool, asked, got, askedBut, gotBut []T) string {
	switch {
	case askedAll && gotAll:
		if denied := without(gotBut, askedBut); len(denied) > 0 {
			return "no " + kind + " " + words(denied)
		}
		return ""
	case askedAll && len(got) == 0:
		return "no " + kind
	case askedAll:
		return kind + " " + words(got) + " alone"
	}
	if gotAll { // never wider than the wish
		return ""
	}
	if missing := without(asked, got); len(missing) > 0 {
		return "no " + kind + " " + words(missing)
	}
	return ""
}

func without[T ~string](all, some []T) []T {
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return slices.Contains(some, v) })
}

func words[T ~string](list []T) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return line(strings.Join(out, ", "), 200)
}
