package action

import (
	"net/http"
	"slices"
	"strings"
)

const maxPath = 2048

var methods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

func (v *validation) http(h HTTPAction) error {
	switch {
	case !upstreamName.MatchString(h.Upstream):
		return invalid("http.upstream", "%q cannot name an upstream", h.Upstream)
	case h.IdempotencyHeader != "" && !headerName.MatchString(h.IdempotencyHeader):
		return invalid("http.idempotencyHeader", "%q cannot name a header", h.IdempotencyHeader)
	}
	if err := v.request("http.request", h.Request, false); err != nil || h.Inverse == nil {
		return err
	}
	if h.Inverse.Method == http.MethodGet {
		return invalid("http.inverse.method", "GET changes nothing, and so takes nothing back")
	}
	return v.request("http.inverse", *h.Inverse, true)
}

func (v *validation) request(field string, r HTTPRequest, inverse bool) error {
	switch {
	case !slices.Contains(methods, r.Method):
		return invalid(field+".method", "there is no method %q; there are %s", r.Method, strings.Join(methods, ", "))
	case r.Method == http.MethodGet && len(r.Body) > 0:
		return invalid(field+".body", "GET has no body")
	case !strings.HasPrefix(r.Path, "/") || len(r.Path) > maxPath || strings.ContainsAny(r.Path, "?#\\ \r\n\t") || !plain(r.Path):
		return invalid(field+".path", "a path begins with \"/\", has at most %d bytes, and holds neither spaces nor a query", maxPath)
	}
	names, ok := placeholders(r.Path)
	if !ok {
		return invalid(field+".path", "operands stand in braces, one by one, as in \"/tickets/{id}\"")
	}
	for _, segment := range strings.Split(r.Path, "/") {
		if segment == "." || segment == ".." {
			return invalid(field+".path", "a path goes straight: %q is not one of its segments", segment)
		}
	}
	for _, name := range names {
		o, given := r.PathOperands[name]
		if !given {
			o.Parameter = name
		}
		if p := v.parameters[o.Parameter]; o.Parameter != "" && !p.Required {
			return invalid(field+".path", "%q is neither an operand of the path nor a required parameter", name)
		}
	}
	for name := range r.PathOperands {
		if !slices.Contains(names, name) {
			return invalid(field+".pathOperands", "%q is not in the path", name)
		}
	}
	if err := v.operands(field+".pathOperands", r.PathOperands, anyName, inverse); err != nil {
		return err
	}
	if err := v.operands(field+".query", r.Query, anyName, inverse); err != nil {
		return err
	}
	return v.operands(field+".body", r.Body, anyName, inverse)
}

// placeholders lists the names in braces; ok is false when a brace has no other half.
func placeholders(path string) (names []string, ok bool) {
	for {
		before, rest, found := strings.Cut(path, "{")
		if strings.Contains(before, "}") {
			return nil, false
		}
		if !found {
			return names, true
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed || name == "" || strings.ContainsAny(name, "{/") {
			return nil, false
		}
		names, path = append(names, name), after
	}
}
