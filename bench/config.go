package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The parts of a run. query and capture are what the parts beneath them measure.
const (
	partQuery    = "query"
	partDoor     = "door"
	partThrough  = "through"
	partCapture  = "capture"
	partDrain    = "drain"
	partBackfill = "backfill"
	partHuge     = "huge"
	partSteady   = "steady"
	partScale    = "scale"
)

var captureParts = []string{partDrain, partBackfill, partHuge, partSteady}

type config struct {
	parts []string
	json  bool

	rows      int
	clients   []int
	perSide   time.Duration // of queries, at one number of clients
	rounds    int           // that perSide is divided into
	backfills int
	questions int
	updates   int

	changes int // to read from one log
	applied int // the first of them, to apply too
	drains  int // rounds of either
	profile string

	huge      int // rows of one transaction
	hugeGiven bool

	rate        int // changes a second
	transaction int // changes in one
	steady      time.Duration
	embedding   time.Duration // that a server of embeddings takes for a request; 0: the built-in model

	sizes []int // rows that the growing table has in turn
}

func (c config) runs(parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return slices.Contains(c.parts, p) })
}

// profileOf names the file of a part's profile; empty: none is wanted.
func (c config) profileOf(part string) string {
	if c.profile == "" {
		return ""
	}
	return c.profile + "." + part
}

// limit is when a run is given up: the parts have budgets that end it much
// sooner, unless something is stuck.
func (c config) limit() time.Duration {
	if c.runs(partScale) {
		return 4 * time.Hour
	}
	return 20*time.Minute + time.Duration(c.changes+c.huge)*time.Millisecond
}

// most is the largest number of clients.
func (c config) most() int { return max(1, slices.Max(c.clients)) }

// shorter is what -short sets, unless it is given.
var shorter = map[string]string{"rows": "2000", "clients": "1,8", "seconds": "2", "changes": "20000", "applied": "3000", "huge": "5000",
	"steady": "3", "rate": "200", "sizes": "1000,12000"}

func parse(args []string, complaints io.Writer) (config, error) {
	c := config{rounds: 5, backfills: 3, questions: 50, updates: 50, drains: 3}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(complaints)
	only := flags.String("only", "", "run only these parts, as in query,drain: query, door, or capture, which is "+strings.Join(captureParts, ", ")+
		"; or scale, which runs only when it is named and takes an hour")
	sizes := flags.String("sizes", "10000,100000,1000000", "rows that the table of scale has in turn")
	flags.IntVar(&c.rows, "rows", 20_000, "rows of the tables that are queried and backfilled")
	clients := flags.String("clients", "1,8,32", "numbers of concurrent clients")
	seconds := flags.Float64("seconds", 8, "seconds of queries for each side, at each number of clients")
	flags.IntVar(&c.changes, "changes", 1_000_000, "changes to read from one log")
	flags.IntVar(&c.applied, "applied", 30_000, "how many of them, the first, to apply too")
	flags.IntVar(&c.huge, "huge", 1_000_000, "rows of the large transaction; the default is fewer on a machine that would take too long")
	flags.IntVar(&c.rate, "rate", 2000, "changes a second at the steady rate")
	flags.IntVar(&c.transaction, "transaction", 20, "changes a transaction at the steady rate")
	steady := flags.Float64("steady", 15, "seconds at the steady rate")
	flags.DurationVar(&c.embedding, "embedding", 0, "embed by a server that takes this long for a request instead of the built-in model")
	flags.StringVar(&c.profile, "cpuprofile", "", "write processor profiles of the last drains to `FILE`.decode and FILE.capture")
	flags.BoolVar(&c.json, "json", false, "print JSON instead of tables")
	short := flags.Bool("short", false, "a quick run with little data; says less")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	set := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
	c.hugeGiven = set["huge"]
	if *short {
		c.rounds, c.backfills, c.questions, c.updates, c.drains = 2, 1, 20, 10, 1
		for name, v := range shorter {
			if !set[name] {
				if err := flags.Set(name, v); err != nil {
					return c, err
				}
			}
		}
	}
	c.perSide = time.Duration(*seconds * float64(time.Second))
	c.steady = time.Duration(*steady * float64(time.Second))
	var err error
	if c.clients, err = numbers("clients", *clients, 90); err != nil {
		return c, err
	}
	if c.sizes, err = numbers("sizes", *sizes, 10_000_000); err != nil {
		return c, err
	}
	if !slices.IsSorted(c.sizes) || c.sizes[0] < 1000 {
		return c, fmt.Errorf("-sizes %s: want growing numbers from 1000 on", *sizes)
	}
	if c.parts, err = partsOf(*only); err != nil {
		return c, err
	}
	return c, c.check()
}

func (c config) check() error {
	switch {
	case c.perSide <= 0:
		return fmt.Errorf("-seconds %v: want more than 0", c.perSide.Seconds())
	case c.embedding < 0 || c.embedding > 0 && c.runs(partQuery, partScale):
		return fmt.Errorf("-embedding %v: want a time, and none of query and scale with it", c.embedding)
	case c.steady <= 0:
		return fmt.Errorf("-steady %v: want more than 0", c.steady.Seconds())
	case c.rows < 100:
		return fmt.Errorf("-rows %d: want at least 100", c.rows)
	case c.applied < 100 || c.changes < c.applied:
		return fmt.Errorf("-changes %d -applied %d: want at least 100, and no more applied than there are", c.changes, c.applied)
	case c.huge < 1:
		return fmt.Errorf("-huge %d: want at least 1", c.huge)
	case c.transaction < 1 || c.rate < c.transaction || c.transaction > steadyRows/2:
		return fmt.Errorf("-rate %d -transaction %d: want at least one transaction a second, of 1 to %d changes", c.rate, c.transaction, steadyRows/2)
	}
	return nil
}

func numbers(flag, list string, most int) (out []int, err error) {
	for part := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("-%s %q: want numbers from 1 to %d, as in 1,8,32", flag, list, most)
		}
		out = append(out, n)
	}
	return out, nil
}

func partsOf(list string) (out []string, err error) {
	if list == "" {
		list = partQuery + "," + partDoor + "," + partThrough + "," + partCapture
	}
	for part := range strings.SplitSeq(list, ",") {
		switch part = strings.TrimSpace(part); {
		case part == partCapture:
			out = append(out, captureParts...)
		case part == partQuery || part == partDoor || part == partThrough || part == partScale || slices.Contains(captureParts, part):
			out = append(out, part)
		default:
			return nil, fmt.Errorf("-only %q: there is no part %q", list, part)
		}
	}
	return out, nil
}
