package devissuer

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"strings"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS []byte
)

func newPage() *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{"join": strings.Join}).Parse(pageHTML))
}

func (i *Issuer) showPage(w http.ResponseWriter, q authRequest) {
	var b bytes.Buffer
	err := i.page.Execute(&b, map[string]any{
		"Style":  i.prefix + "/style.css",
		"Action": i.prefix + "/signin?" + q.query.Encode(),
		"Issuer": i.c.URL,
		"Client": q.query.Get("client_id"),
		"Hint":   q.query.Get("login_hint"),
		"Users":  i.c.Users,
	})
	if err != nil {
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; "+
		"form-action 'self' "+formTarget(q))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // a reader that is gone needs no page
}

// formTarget is where the form's answer sends the browser, which form-action holds
// for as well. CSP cannot write IPv6 addresses, so those are any http.
func formTarget(q authRequest) string {
	if strings.Contains(q.redirect.Host, "[") {
		return "http:"
	}
	return "http://" + q.redirect.Host
}

func style(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	_, _ = w.Write(pageCSS)
}
