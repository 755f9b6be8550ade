// Command page writes docs/errors.md from the catalogue, to its output.
package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/whence-db/whence/reason"
)

//go:embed head.md
var head string

// codes are the Connect codes with what they stand for and their HTTP status.
var codes = []struct {
	code, says string
	status     int
}{
	{"invalid_argument", "The request is at fault.", 400},
	{"unauthenticated", "It is not known who asks.", 401},
	{"permission_denied", "Who asks may not do this.", 403},
	{"not_found", "What is named is not there, as far as the caller may know.", 404},
	{"already_exists", "What is to be made is there already.", 409},
	{"failed_precondition", "The request is in order, and the state of things stands against it.", 400},
	{"resource_exhausted", "A budget or a rate does not allow it.", 429},
	{"aborted", "Somebody else was at the same thing.", 409},
	{"unavailable", "Something that is needed does not answer.", 503},
	{"deadline_exceeded", "It took too long.", 504},
	{"canceled", "The caller gave up.", 499},
	{"unimplemented", "The server does not do this.", 501},
	{"internal", "The server failed.", 500},
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	write(out, reason.All())
	if err := out.Flush(); err != nil {
		panic(err)
	}
}

// write writes the page; an entry of several codes is in the table of each.
func write(w io.Writer, all []reason.Entry) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("<!-- Made by scripts/generate from package reason; do not edit. -->\n%s", head)
	p("\n## Next steps\n\n| `next` | what to do |\n| --- | --- |\n")
	for _, n := range reason.Steps() {
		p("| `%s` | %s |\n", n, n.Advice())
	}
	p("\n## Reasons\n\nEvery error carries `next` in its metadata, so it is not named again here. Where the last column says more than the step, it says what is particular to the reason.\n")
	for _, c := range codes {
		p("\n### `%s`\n\n%s HTTP status %d.\n\n| reason | meaning | details | next step |\n| --- | --- | --- | --- |\n", c.code, c.says, c.status)
		for _, e := range all {
			if slices.Contains(e.Codes, c.code) {
				p("| `%s` | %s | %s | %s |\n", e.Reason, e.Meaning, details(e, c.code), next(e))
			}
		}
	}
}

func details(e reason.Entry, code string) string {
	var out []string
	switch {
	case e.Field && code == "invalid_argument":
		out = append(out, "BadRequest: the field")
	case code == "failed_precondition":
		out = append(out, "PreconditionFailure")
	case code == "resource_exhausted":
		out = append(out, "QuotaFailure")
	}
	if e.Retry {
		out = append(out, "RetryInfo")
	}
	for _, k := range e.Metadata {
		if k == reason.AnyField {
			out = append(out, "a key for each field at fault")
		} else {
			out = append(out, "`"+k+"`")
		}
	}
	return strings.Join(out, ", ")
}

func next(e reason.Entry) string {
	if e.Do == "" {
		return fmt.Sprintf("`%s`", e.Next)
	}
	return fmt.Sprintf("`%s`: %s", e.Next, e.Do)
}
