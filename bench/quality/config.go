package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/whence-db/whence/query"
)

// config is what the flags say.
type config struct {
	data      string
	split     string
	questions int
	limit     int
	ranking   query.Ranking
	halfLife  time.Duration
	sweep     bool
	worst     int
	json      bool
	model     modelFlags
}

func parse(args []string, messages io.Writer) (config, error) {
	c := config{ranking: query.DefaultRanking}
	flags := flag.NewFlagSet("quality", flag.ContinueOnError)
	flags.SetOutput(messages)
	flags.StringVar(&c.data, "data", "", "the `FOLDER` of the data set: corpus.jsonl, queries.jsonl, qrels/*.tsv")
	flags.StringVar(&c.split, "split", "test", "`NAME` of the file in qrels, without its ending; all takes every one")
	flags.IntVar(&c.questions, "questions", 0, "ask the first `N` questions only; 0: all")
	flags.IntVar(&c.limit, "limit", query.MaxLimit, "ask for `N` hits, of which several may be chunks of one document")
	flags.Func("ranking", "`WEIGHTS` to rank by, as in dense=1,lexical=1,floor=0.05,recency=0.15; what is left out is the default's", c.setRanking)
	flags.DurationVar(&c.halfLife, "half-life", 0, "of recency, as a table's; 0: a table's default")
	flags.BoolVar(&c.sweep, "sweep", false, "also try weights of the legs and of recency in steps")
	flags.IntVar(&c.worst, "worst", 0, "also list the `N` questions that the fused ranking loses most on to plain BM25")
	flags.BoolVar(&c.json, "json", false, "print JSON instead of tables")
	c.model.define(flags)
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if err := fromEnvironment(flags, os.Getenv); err != nil {
		return c, err
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("%q is no flag", flags.Arg(0))
	case c.data == "":
		return c, errors.New("-data names the folder of a data set; bench/quality/testdata/fennmark is one")
	case c.limit < 1 || c.limit > query.MaxLimit:
		return c, fmt.Errorf("-limit %d: want 1 to %d", c.limit, query.MaxLimit)
	case c.questions < 0 || c.worst < 0:
		return c, errors.New("-questions and -worst must not be negative")
	}
	return c, nil
}

// setRanking changes what the list names. The weights are checked by the engine.
func (c *config) setRanking(list string) error {
	fields := map[string]*float64{"dense": &c.ranking.Dense, "lexical": &c.ranking.Lexical,
		"floor": &c.ranking.DenseFloor, "recency": &c.ranking.Recency}
	for part := range strings.SplitSeq(list, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		field, known := fields[name]
		v, err := strconv.ParseFloat(value, 64)
		if !known || err != nil {
			return fmt.Errorf("%q: want dense, lexical, floor or recency, each with a number, as in dense=0.5", part)
		}
		*field = v
	}
	return nil
}
