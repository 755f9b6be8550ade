package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// template is a rule's path, taken apart.
type template struct {
	segments []segment
	rest     bool // "**" follows
}

type segment struct {
	text string
	any  bool
}

var (
	spendForm       = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)
	placeholderForm = regexp.MustCompile(`^\{[A-Za-z][A-Za-z0-9_]*\}$`)
)

func (r Rule) compile() (t template, err error) {
	switch {
	case r.Method != "" && !methodForm.MatchString(r.Method):
		return t, errors.New("a rule's method is a word in capital letters, or empty for any")
	case !r.Tier.Valid():
		return t, errors.New("a rule's tier is READ, REVERSIBLE or IRREVERSIBLE")
	case r.CostMicros < 0 || r.SpendUnitMicros < 0:
		return t, errors.New("costs are not negative")
	case r.SpendHeader != "" && !spendForm.MatchString(r.SpendHeader):
		return t, errors.New("a spend header's name is a letter, then letters, digits or -, at most 64")
	case len(r.Path) > maxURL:
		return t, fmt.Errorf("a rule's path has at most %d bytes", maxURL)
	}
	path, ok := strings.CutPrefix(r.Path, "/")
	if !ok {
		return t, errors.New("a rule's path starts with a slash")
	}
	parts := strings.Split(path, "/")
	if last := len(parts) - 1; parts[last] == "**" {
		t.rest, parts = true, parts[:last]
	}
	for i, part := range parts {
		switch {
		case placeholderForm.MatchString(part):
			t.segments = append(t.segments, segment{any: true})
			continue
		case strings.Contains(part, "*"):
			return t, errors.New(`in a rule's path, "**" stands as the last segment, and * nowhere else`)
		case part == "" && (t.rest || i < len(parts)-1):
			return t, errors.New("a rule's path has an empty segment (//)")
		}
		text, err := splitPath("/" + part) // one segment, as callers must write it
		if err != nil {
			return t, fmt.Errorf("in a rule, %w; a placeholder is {name}", err)
		}
		t.segments = append(t.segments, segment{text: text[0]})
	}
	return t, nil
}

// matches takes the decoded segments of a path. "**" stands for no segment too; a
// placeholder never for an empty one.
func (t template) matches(path []string) bool {
	if len(path) < len(t.segments) || len(path) > len(t.segments) && !t.rest {
		return false
	}
	for i, s := range t.segments {
		if s.any && path[i] == "" || !s.any && path[i] != s.text {
			return false
		}
	}
	return true
}

// Verdict is the rule that a request falls under.
type Verdict struct {
	Rule
	Index int // of the rule; -1: none matched, and Rule is the default
}

// Match finds the first rule that matches. A request that none matches reads if its
// method is GET or HEAD, and is irreversible otherwise.
//
// Many servers serve a path with and without a slash at its end alike. So a path that
// no rule spells out is refused where a rule does spell out the one with the slash
// added or taken away, and judges it differently. Refused is also what [ReadTarget]
// refuses.
func (u *Upstream) Match(method, path string) (Verdict, error) {
	if err := (Target{Method: method, Path: path}).check(); err != nil {
		return Verdict{}, err
	}
	segments, err := splitPath(path)
	if err != nil {
		return Verdict{}, badRequest(err.Error())
	}
	v := u.first(method, segments)
	if path == "/" || u.spells(v) {
		return v, nil
	}
	twin, spelt := append(slices.Clone(segments), ""), "with a slash at its end"
	if last := len(segments) - 1; segments[last] == "" {
		twin, spelt = segments[:last], "without the slash at its end"
	}
	if other := u.first(method, twin); u.spells(other) && !v.same(other) {
		e := badRequest("the path falls under a rule of its own only " + spelt + "; write it so")
		e.Metadata = map[string]string{"rule": other.Path}
		return Verdict{}, e
	}
	return v, nil
}

// spells tells whether a verdict comes of a rule that says how many segments there are.
func (u *Upstream) spells(v Verdict) bool { return v.Index >= 0 && !u.templates[v.Index].rest }

func (v Verdict) same(other Verdict) bool {
	v.Method, v.Path, other.Method, other.Path = "", "", "", ""
	return v.Rule == other.Rule
}

func (u *Upstream) first(method string, path []string) Verdict {
	for i, t := range u.templates {
		if r := u.Rules[i]; r.takes(method) && t.matches(path) {
			return Verdict{r, i}
		}
	}
	tier := authz.TierIrreversible
	if method == http.MethodGet || method == http.MethodHead {
		tier = authz.TierRead
	}
	return Verdict{Rule{Tier: tier}, -1}
}

// takes lets HEAD fall under a rule of GET, as servers hand it to the same code.
func (r Rule) takes(method string) bool {
	return r.Method == "" || r.Method == method || r.Method == http.MethodGet && method == http.MethodHead
}

func configuration(name, message string) *whence.Error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "UPSTREAM_NOT_CONFIGURED", Message: message, Metadata: map[string]string{"upstream": name}}
}
