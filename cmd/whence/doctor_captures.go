package main

import (
	"context"
	"fmt"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
)

// checkCaptures looks at every source and table that the memory database knows.
func checkCaptures(ctx context.Context, dsn string) []finding {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := survey(ctx, dsn)
	if err != nil {
		return []finding{{Check: "sources and tables", Error: err.Error()}}
	}
	var found []finding
	add := func(check, trouble string) {
		found = append(found, finding{Check: check, OK: trouble == "", Error: trouble})
	}
	for _, src := range s.Sources {
		add("source "+src.Name, sourceTrouble(src))
	}
	for _, t := range s.Tables {
		add("table "+string(t.Name()), tableTrouble(t, s.SetAside[t.ID]))
	}
	return found
}

func survey(ctx context.Context, dsn string) (ingest.Survey, error) {
	pool, err := pg.NewPool(ctx, dsn, 1)
	if err != nil {
		return ingest.Survey{}, err
	}
	defer pool.Close()
	x, err := index.New(index.Config{Pool: pool})
	if err != nil {
		return ingest.Survey{}, err
	}
	key, err := seal.ParseKey(seal.NewKey()) // nothing that is sealed is read
	if err != nil {
		return ingest.Survey{}, err
	}
	registry, err := ingest.NewRegistry(ingest.Config{Pool: pool, Index: x, Seal: key})
	if err != nil {
		return ingest.Survey{}, err
	}
	defer registry.Close()
	return registry.Survey(ctx)
}

// sourceTrouble says what is wrong with a source and what to do; empty when nothing is.
func sourceTrouble(s ingest.Source) string {
	trouble := ""
	switch s.State {
	case ingest.SourceStreaming:
	case ingest.SourcePaused:
		trouble = fmt.Sprintf("it is PAUSED, and its slot holds back log: whence source resume %s", s.Name)
	case ingest.SourceBroken:
		trouble = fmt.Sprintf("it is BROKEN (%s): mend that, then whence source resume %s", s.Error, s.Name)
	case ingest.SourceDeleting:
		trouble = fmt.Sprintf("it is being deleted (%s): mend that, or whence source delete %s --force", orElse(s.Error, "it is not known what it waits for"), s.Name)
	case ingest.SourceConnecting:
		trouble = fmt.Sprintf("it is CONNECTING (%s)", orElse(s.Error, "see that a process with the role capture runs"))
	}
	switch {
	case s.Warning == "":
	case trouble == "":
		trouble = s.Warning
	default:
		trouble += "; " + s.Warning
	}
	return line(trouble, 2000)
}

// tableTrouble says what is wrong with a table and what to do; empty when nothing
// is. One that is being copied is well.
func tableTrouble(t ingest.TableInfo, aside int64) string {
	switch {
	case t.State == whence.TableSchemaChanged, t.State == whence.TableBroken:
		return line(fmt.Sprintf("it is %s: %s", t.State, t.Error), 2000)
	case aside > 0:
		return fmt.Sprintf("%d rows are not taken over whole: whence table get %s --aside 20 tells which and why", aside, t.Name())
	}
	return ""
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
