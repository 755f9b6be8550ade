package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// testThePast asks what was current before rows changed, by the API and from the
// command line.
func (w *running) testThePast(t *testing.T) {
	t.Parallel()
	const name = "app.public.berths"
	w.exec(t, `create table public.berths (id int primary key, what text)`)
	w.exec(t, `insert into public.berths values (1, 'the brig Halcyon lies at berth one'), (2, 'the ketch Petrel lies at berth two'), (3, 'the pram Smelt lies ashore')`)
	asked := time.Now()
	w.register(t, &v1.RegisterTableRequest{Table: "public.berths", TextColumns: []string{"what"}})
	moment := func() (at time.Time) {
		t.Helper()
		if err := w.source.QueryRow(t.Context(), `select clock_timestamp() from pg_sleep(0.01)`).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	first := moment()
	w.exec(t, `update public.berths set what = 'the sloop Garnet lies at berth one' where id = 1`)
	second := moment()
	w.exec(t, `delete from public.berths where id = 2`)
	w.exec(t, `insert into public.berths values (4, 'the yawl Teal lies at berth two')`)
	w.settledAt(t, name, "Teal")

	texts := func(at time.Time) map[string]*v1.Hit {
		t.Helper()
		var res v1.QueryResponse
		w.agent().must(t, "MemoryService/Query", &v1.QueryRequest{Text: "what lies at which berth", Tables: []string{name}, AsOf: timestamppb.New(at)}, &res)
		out := map[string]*v1.Hit{}
		for _, h := range res.GetHits() {
			out[h.GetText()] = h
		}
		return out
	}
	found := texts(first)
	halcyon, petrel, smelt := found["the brig Halcyon lies at berth one"], found["the ketch Petrel lies at berth two"], found["the pram Smelt lies ashore"]
	if len(found) != 3 || freshnessText(halcyon.GetFreshness()) != "STALE SOURCE_CHANGED" || freshnessText(petrel.GetFreshness()) != "STALE SOURCE_DELETED" ||
		smelt.GetFreshness().GetState() == v1.FreshnessState_FRESHNESS_STATE_STALE || halcyon.GetOrigin().GetVersion() != 1 || halcyon.GetScore().Dense == nil {
		t.Errorf("at first: %v", found)
	}
	if found = texts(second); len(found) != 3 || found["the sloop Garnet lies at berth one"] == nil || found["the ketch Petrel lies at berth two"] == nil {
		t.Errorf("after the update: %v", found)
	}
	w.cli(t, "query", "which berth", "--table", name, "--as-of", first.UTC().Format(time.RFC3339Nano)).is(t, 0, "Halcyon", "Petrel", "SOURCE_DELETED")
	w.cli(t, "query", "which berth", "--table", name, "--as-of", asked.UTC().Format(time.RFC3339Nano)).is(t, 1, "is known from")
	w.cli(t, "query", "which berth", "--table", name, "--as-of", "yesterday").is(t, 2, "as-of")
}

// settledAt waits until a word is found.
func (w *running) settledAt(t *testing.T, table, word string) {
	t.Helper()
	w.settled(t, table)
	eventually(t, startLimit, "found: "+word, func() error {
		var res v1.QueryResponse
		w.agent().must(t, "MemoryService/Query", &v1.QueryRequest{Text: word, Tables: []string{table}}, &res)
		for _, h := range res.GetHits() {
			if h.GetScore().Lexical != nil && h.GetScore().Dense != nil {
				return nil
			}
		}
		return fmt.Errorf("%d hits", len(res.GetHits()))
	})
}

// testAnothersDeletion lists the versions of a row whose key had another subject's
// row before.
func (w *running) testAnothersDeletion(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.lockers (id int primary key, what text not null, who text not null)`)
	w.exec(t, `insert into public.lockers values (1, 'a taupe rucksack', 'first')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.lockers", TextColumns: []string{"what"}, SubjectColumn: "who"})
	w.exec(t, `delete from public.lockers where id = 1`)
	w.exec(t, `insert into public.lockers values (1, 'a taupe umbrella', 'second')`)
	w.exec(t, `delete from public.lockers where id = 1`)
	w.exec(t, `insert into public.lockers values (1, 'a taupe hat', 'second')`)
	list := func(scope *v1.Scope) (versions []uint32) {
		scope.AllTables, scope.Actions = true, []string{"memory:read"}
		agent, _ := w.agent().delegate(t, &v1.DelegateRequest{Agent: "helper", Purpose: "lockers", Scope: scope})
		eventually(t, showLimit, "all versions are captured", func() error {
			var res v1.ListVersionsResponse
			key := &structpb.Struct{Fields: map[string]*structpb.Value{"id": structpb.NewStringValue("1")}}
			if err := agent.call(t.Context(), "MemoryService/ListVersions", &v1.ListVersionsRequest{Table: "app.public.lockers", Key: key}, &res); err != nil {
				return err
			}
			versions = nil
			for _, v := range res.GetVersions() {
				versions = append(versions, v.GetVersion())
			}
			if len(versions) == 0 || versions[0] != 5 {
				return fmt.Errorf("%v", versions)
			}
			return nil
		})
		return versions
	}
	if got := list(&v1.Scope{Subjects: []string{"second"}}); !slices.Equal(got, []uint32{5, 4, 3}) {
		t.Errorf("within the second subject: versions %v, want its own three", got)
	}
	if got := list(&v1.Scope{AllSubjects: true}); !slices.Equal(got, []uint32{5, 4, 3, 2, 1}) {
		t.Errorf("within all subjects: versions %v", got)
	}
}
