package main

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// testOperate has a source paused, a table that waits for it, one that lost a
// column and one with a row that does not fit; all of it is said where an operator
// looks.
func (w *running) testOperate(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.barn (id int primary key, owner text, what text)`)
	w.exec(t, `insert into public.barn values (1, repeat('o', 3000), 'a harrow'), (2, repeat('p', 3000), 'a scythe'), (3, 'ann', 'a flail')`)
	w.exec(t, `create table public.sty (id int primary key, what text)`)
	w.cli(t, "table", "register", "app", "public.barn", "--text", "what", "--subject", "owner", "--wait").is(t, 0, "LIVE")
	w.cli(t, "table", "register", "app", "public.sty", "--text", "what", "--wait").is(t, 0, "LIVE")
	memory := w.env["WHENCE_DATABASE_URL"]
	doctor := func() outcome { return command(t, "doctor", "--database-url", memory) }

	w.cli(t, "table", "get", "app.public.barn", "--aside", "10").is(t, 0, `{"id":"1"}`, `{"id":"2"}`, "subject")
	w.cli(t, "table", "get", "app.public.barn").is(t, 0, "rows not taken over whole: 2", "--aside")
	w.exec(t, `alter table public.sty drop column what`)
	eventually(t, startLimit, "doctor names what is wrong", func() error {
		o := doctor()
		for _, word := range []string{"ok    memory database", "ok    migrations", "ok    source app", "MEND  table app.public.barn: 2 rows", "--aside", "MEND  table app.public.sty: it is SCHEMA_CHANGED"} {
			if o.status != 1 || !strings.Contains(o.out, word) {
				return errors.New(word + " is not in " + o.out + o.err)
			}
		}
		return nil
	})

	w.cli(t, "source", "create", "held", "--dsn", w.env["WHENCE_SOURCE_URL"]).is(t, 0, "CONNECTING")
	w.cli(t, "source", "pause", "held").is(t, 0, "PAUSED")
	ctx, cancel := context.WithCancel(t.Context())
	out, status := newJournal(), make(chan int, 1)
	args := w.credentialed([]string{"table", "register", "held", "public.barn", "--text", "what", "--wait"})
	go func() { status <- run(ctx, args, out, out) }()
	eventually(t, startLimit, "the command says why it waits", func() error {
		if s := out.String(); !strings.Contains(s, "the source held is PAUSED") || strings.Contains(s, "0/0") {
			return errors.New(s)
		}
		return nil
	})
	cancel()
	<-status
	doctor().is(t, 1, "MEND  source held: it is PAUSED", "whence source resume held")
	w.cli(t, "source", "delete", "held", "--force").is(t, 0, "deleted")
	w.cli(t, "table", "unregister", "app.public.barn").is(t, 0)
	w.cli(t, "table", "unregister", "app.public.sty").is(t, 0)
}
