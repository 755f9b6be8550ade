package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// width is the most columns that a line takes.
const width = 100

// screen writes the story. Colours and moving bars are for terminals only.
type screen struct {
	out      io.Writer
	terminal bool // lines may be drawn over
	colour   bool
}

func newScreen(f *os.File) *screen {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &screen{out: f, terminal: terminal, colour: terminal && os.Getenv("NO_COLOR") == ""}
}

// The ways a word is set off, as ANSI codes.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *screen) line(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// title opens a section and says in a sentence or two what is about to happen.
func (s *screen) title(n int, title, why string) {
	s.line("\n%s", s.paint(bold+";"+cyan, fmt.Sprintf("%d. %s", n, title)))
	for _, l := range wrap(why, width-3) {
		s.line("   %s", s.paint(dim, l))
	}
}

// state paints a freshness state, a decision or a task's state by what it means.
func (s *screen) state(text string) string {
	switch first, _, _ := strings.Cut(strings.TrimSpace(text), " "); first {
	case "FRESH", "VERIFIED", "ALLOWED", "LIVE", "STREAMING":
		return s.paint(green, text)
	case "STALE", "UNKNOWN", "DELETED":
		return s.paint(yellow, text)
	case "REFUSED", "FAILED":
		return s.paint(red, text)
	}
	return text
}

// wrap breaks text into lines of at most n columns.
func wrap(text string, n int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > n {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// cut folds white space and shortens to n columns.
func cut(text string, n int) string {
	r := []rune(strings.Join(strings.Fields(text), " "))
	if len(r) <= n {
		return string(r)
	}
	return string(r[:n-1]) + "…"
}

// plain drops an enum value's type prefix: TABLE_STATE_LIVE is LIVE.
func plain(v fmt.Stringer) string {
	s := v.String()
	for _, prefix := range []string{"FRESHNESS_STATE_", "FRESHNESS_REASON_", "TABLE_STATE_", "SOURCE_STATE_", "RECORD_STATE_", "DECISION_"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}

// took writes a duration as people read it.
func took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "under 1 ms"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// number writes a count with its thousands apart.
func number[T ~int | ~int64 | ~uint32](n T) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rate is a count a second.
func rate[T ~int | ~int64 | ~uint32](n T, d time.Duration) string {
	return number(int(float64(n) / max(d.Seconds(), 0.001)))
}
