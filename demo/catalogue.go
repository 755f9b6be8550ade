package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// row is one package of a catalogue.
type row struct {
	Name, Section, Maintainer, Version, Description string
	ListedAt                                        time.Time
}

// catalogue is what the demo remembers, and where it is from.
type catalogue struct {
	From string
	Rows []row
}

// aptLists is where apt keeps the lists that `apt-get update` fetched.
const aptLists = "/var/lib/apt/lists"

// enough is how many packages a catalogue has at least: before the first
// `apt-get update`, apt lists only what is installed.
const enough = 1000

// choose returns the catalogue of the given kind: "apt", "sample", or "auto" for
// the machine's own where it has one and the sample elsewhere.
func choose(ctx context.Context, kind string) (catalogue, error) {
	switch kind {
	case "sample":
		return sample()
	case "apt":
		return fromApt(ctx)
	case "auto":
		if _, err := exec.LookPath("apt-cache"); err != nil {
			return sample()
		}
		c, err := fromApt(ctx)
		if err == nil && len(c.Rows) < enough {
			return sample()
		}
		return c, err
	}
	return catalogue{}, fmt.Errorf("there is no catalogue %q: choose auto, apt or sample", kind)
}

// fromApt reads every package that apt knows of.
func fromApt(ctx context.Context) (catalogue, error) {
	cmd := exec.CommandContext(ctx, "apt-cache", "dumpavail")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return catalogue{}, err
	}
	if err := cmd.Start(); err != nil {
		return catalogue{}, err
	}
	rows, err := parseAvailable(out, listedAt(aptLists))
	if err != nil { // the rest is of no use, but must not block the writer
		_, _ = io.Copy(io.Discard, out)
	}
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return catalogue{}, fmt.Errorf("apt-cache dumpavail: %w %s", err, complaint.String())
	}
	return catalogue{From: "apt-cache dumpavail", Rows: rows}, nil
}

// listedAt is when the newest package list was published; now when there is none.
// apt gives list files the time that the mirror has for them.
func listedAt(lists string) time.Time {
	var newest time.Time
	paths, _ := filepath.Glob(filepath.Join(lists, "*_Packages*")) // the pattern is well-formed
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	if newest.IsZero() {
		return time.Now()
	}
	return newest
}

// parseAvailable reads stanzas of "Field: value" lines, divided by blank lines,
// in the order they come. A stanza without a package name is an error. Of several
// stanzas with one name, which machines with several architectures have, the last
// counts.
func parseAvailable(r io.Reader, at time.Time) ([]row, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	var rows []row
	seen := map[string]int{}
	current, started := row{ListedAt: at}, false
	finish := func() error {
		if !started {
			return nil
		}
		if current.Name == "" {
			return fmt.Errorf("stanza %d names no package", len(rows)+1)
		}
		if i, ok := seen[current.Name]; ok {
			rows[i] = current
		} else {
			seen[current.Name] = len(rows)
			rows = append(rows, current)
		}
		current, started = row{ListedAt: at}, false
		return nil
	}
	for {
		line, err := in.ReadString('\n')
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return nil, err
		}
		text := strings.TrimRight(line, "\r\n")
		if text != "" {
			started = true
			current.take(text)
		}
		if text == "" || last {
			if err := finish(); err != nil {
				return nil, err
			}
		}
		if last {
			return rows, nil
		}
	}
}

// take sets the field that a line holds, if it is one that counts. Continuation
// lines start with a space and hold the long description, among others.
func (r *row) take(line string) {
	if line[0] == ' ' || line[0] == '\t' {
		return
	}
	field, value, _ := strings.Cut(line, ":")
	value = strings.ToValidUTF8(strings.ReplaceAll(strings.TrimSpace(value), "\x00", ""), "\uFFFD")
	switch strings.ToLower(field) {
	case "package":
		r.Name = value
	case "section":
		// Sections outside the main archive area are written "area/section".
		r.Section = value[strings.LastIndexByte(value, '/')+1:]
	case "maintainer":
		r.Maintainer = value
	case "version":
		r.Version = value
	case "description":
		r.Description = value
	}
}

//go:embed sample.csv
var sampleCSV string

// sampleTime is when the sample was written.
var sampleTime = time.Date(2026, time.November, 22, 12, 0, 0, 0, time.UTC)

// sample returns the rows that ship with the demo: well-known tools, described in
// our own words.
func sample() (catalogue, error) {
	in := csv.NewReader(strings.NewReader(sampleCSV))
	in.FieldsPerRecord = 5
	records, err := in.ReadAll()
	if err != nil {
		return catalogue{}, fmt.Errorf("sample.csv: %w", err)
	}
	c := catalogue{From: "the sample that ships with the demo"}
	for _, r := range records[1:] {
		c.Rows = append(c.Rows, row{Name: r[0], Section: r[1], Maintainer: r[2], Version: r[3], Description: r[4], ListedAt: sampleTime})
	}
	return c, nil
}
