package index_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/index"
)

func TestRecordIsScoped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	w.put("articles", row{"1", "ann", "en", "first text"})
	w.put("articles", row{"1", "bob", "en", "second text"})
	w.embed("second text")
	get := func(scope authz.Scope, id string) (r index.Record, v []index.Version, err error) {
		err = snapshot(t, w, func(ctx context.Context, tx pgx.Tx) error {
			if v, _, err = w.x.Versions(ctx, tx, scope, w.tables["articles"], key(id), 10, ""); err != nil {
				return err
			}
			r, err = w.x.Record(ctx, tx, scope, w.tables["articles"], key(id), w.space)
			return err
		})
		return r, v, err
	}
	r, v, err := get(everything(t), "1")
	if err != nil || r.Text != "second text" || *r.Subject != "bob" || *r.Columns["body"] != "second text" ||
		r.Chunks != 1 || r.Embedded != 1 || r.Version != 2 || len(v) != 2 || v[0].Version != 2 || v[1].Text != "first text" {
		t.Errorf("all: %+v %+v %v", r, v, err)
	}
	// bob holds the row now, but not what it was when it was ann's.
	if _, v, err = get(subjects(t, "bob"), "1"); err != nil || len(v) != 1 || v[0].Version != 2 {
		t.Errorf("bob: %+v %v", v, err)
	}
	denied := authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{"ann"}})
	if _, v, err = get(denied, "1"); err != nil || len(v) != 1 || v[0].Version != 2 {
		t.Errorf("all but ann: %+v %v", v, err)
	}
	if _, _, err = get(authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, DenySubjects: []string{"bob"}}), "1"); !errors.Is(err, whence.ErrNotFound) {
		t.Errorf("all but bob: %v", err)
	}
	_, _, outside := get(subjects(t, "ann"), "1")
	_, _, absent := get(subjects(t, "bob"), "2")
	for _, err := range []error{outside, absent} {
		var e *whence.Error
		if !errors.As(err, &e) || e.Reason != "RECORD_NOT_FOUND" {
			t.Errorf("want RECORD_NOT_FOUND, got %v", err)
		}
	}
}

func TestVersionsPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "articles")
	for _, text := range []string{"a", "b", "c", "d", "e"} {
		w.put("articles", row{"1", "ann", "en", text})
	}
	err := snapshot(t, w, func(ctx context.Context, tx pgx.Tx) error {
		var got, token string
		for {
			page, next, err := w.x.Versions(ctx, tx, everything(t), w.tables["articles"], key("1"), 2, token)
			if err != nil {
				return err
			}
			for _, v := range page {
				got += v.Text
			}
			if token = next; token == "" {
				break
			}
			got += "|"
		}
		if got != "ed|cb|a" {
			t.Errorf("pages: %s", got)
		}
		_, _, err := w.x.Versions(ctx, tx, everything(t), w.tables["articles"], key("1"), 2, "x")
		if !errors.Is(err, whence.ErrInvalid) {
			t.Errorf("a token of someone's own making: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
