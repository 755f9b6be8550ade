package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type upstreamCmd struct {
	Create upstreamCreate `cmd:"" help:"Let agents reach an HTTP service at /up/NAME/."`
	List   upstreamList   `cmd:"" default:"withargs" help:"List upstreams."`
	Show   upstreamShow   `cmd:"" help:"Show one upstream with its rules." aliases:"get"`
	Update upstreamUpdate `cmd:"" help:"Replace an upstream's definition; what is not given is as if it never was."`
	Delete upstreamDelete `cmd:"" help:"Close the way to an upstream."`
}

// upstreamDefinition says what may be asked of an upstream.
type upstreamDefinition struct {
	Name             string        `arg:"" help:"Its name in /up/NAME/."`
	Base             string        `arg:"" name:"base" help:"The URL that paths are below."`
	AuthorizationEnv string        `help:"Environment variable of the server that holds the Authorization header to send." placeholder:"NAME"`
	Rule             []string      `help:"Tier and cost of requests, the first that matches: 'METHOD PATH TIER', METHOD * for any; then cost=MICROS spend=HEADER unit=MICROS, each if wanted. Such as 'POST /v1/chat READ cost=50000 spend=X-Cost unit=1000000'." sep:"none" placeholder:"RULE"`
	Timeout          time.Duration `help:"How long a request may take, at most 1h; otherwise 30s."`
	PrivateRange     []string      `help:"Addresses that its host may have though they are private, such as 10.1.0.0/16." placeholder:"RANGE"`
	MaxRequestBytes  uint32        `help:"The most bytes of a request's body; otherwise 1 MiB."`
	MaxResponseBytes uint32        `help:"The most bytes of a reply's body; otherwise 16 MiB."`
}

func (d upstreamDefinition) message() (*v1.Upstream, error) {
	u := &v1.Upstream{Name: d.Name, Url: d.Base, AuthorizationEnv: d.AuthorizationEnv, PrivateRanges: d.PrivateRange,
		MaxRequestBytes: d.MaxRequestBytes, MaxResponseBytes: d.MaxResponseBytes}
	if d.Timeout != 0 {
		u.Timeout = durationpb.New(d.Timeout)
	}
	for _, text := range d.Rule {
		r, err := readRule(text)
		if err != nil {
			return nil, fmt.Errorf("--rule %q: %w", text, err)
		}
		u.Rules = append(u.Rules, r)
	}
	return u, nil
}

func readRule(text string) (*v1.UpstreamRule, error) {
	words := strings.Fields(text)
	if len(words) < 3 {
		return nil, fmt.Errorf("a rule is METHOD PATH TIER, such as 'GET /v1/things/{id} READ'")
	}
	tier, ok := v1.Tier_value["TIER_"+strings.ToUpper(words[2])]
	if !ok || tier == 0 {
		return nil, fmt.Errorf("there is no tier %s; there are READ, REVERSIBLE, IRREVERSIBLE", words[2])
	}
	r := &v1.UpstreamRule{Method: words[0], Path: words[1], Tier: v1.Tier(tier)}
	if r.Method == "*" {
		r.Method = ""
	}
	for _, word := range words[3:] {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "cost":
			r.CostMicros, err = strconv.ParseInt(value, 10, 64)
		case "spend":
			r.SpendHeader = value
		case "unit":
			r.SpendUnitMicros, err = strconv.ParseInt(value, 10, 64)
		default:
			return nil, fmt.Errorf("after the tier come cost=, spend= and unit=, not %s", word)
		}
		if err != nil {
			return nil, fmt.Errorf("%s is a whole number of millionths", key)
		}
	}
	return r, nil
}

// ruleText is what readRule reads.
func ruleText(r *v1.UpstreamRule) string {
	words := []string{cmp.Or(r.GetMethod(), "*"), r.GetPath(), strings.TrimPrefix(r.GetTier().String(), "TIER_")}
	if r.GetCostMicros() != 0 {
		words = append(words, fmt.Sprintf("cost=%d", r.GetCostMicros()))
	}
	if r.GetSpendHeader() != "" {
		words = append(words, "spend="+r.GetSpendHeader(), fmt.Sprintf("unit=%d", r.GetSpendUnitMicros()))
	}
	return strings.Join(words, " ")
}

type upstreamCreate struct {
	operatorFlags      `embed:""`
	upstreamDefinition `embed:""`
}

func (c *upstreamCreate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	u, err := c.message()
	if err != nil {
		return err
	}
	res, err := client.CreateUpstream(ctx, &v1.CreateUpstreamRequest{Upstream: u})
	if err != nil {
		return err
	}
	return show(a, res, func() { printUpstream(a, res.GetUpstream()) })
}

type upstreamUpdate struct {
	operatorFlags      `embed:""`
	upstreamDefinition `embed:""`
}

func (c *upstreamUpdate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	u, err := c.message()
	if err != nil {
		return err
	}
	res, err := client.UpdateUpstream(ctx, &v1.UpdateUpstreamRequest{Upstream: u})
	if err != nil {
		return err
	}
	return show(a, res, func() { printUpstream(a, res.GetUpstream()) })
}

type upstreamList struct {
	operatorFlags `embed:""`
	pageFlags     `embed:""`
}

func (c *upstreamList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListUpstreams(ctx, &v1.ListUpstreamsRequest{PageSize: c.Limit, PageToken: c.Page})
	if err != nil {
		return err
	}
	return show(a, res, func() { printUpstreams(a, res.GetUpstreams()...); a.more(res.GetNextPageToken()) })
}

type upstreamName struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The upstream's name."`
}

type upstreamShow struct {
	upstreamName `embed:""`
}

func (c *upstreamShow) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.GetUpstream(ctx, &v1.GetUpstreamRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { printUpstream(a, res.GetUpstream()) })
}

type upstreamDelete struct {
	upstreamName `embed:""`
}

func (c *upstreamDelete) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.DeleteUpstream(ctx, &v1.DeleteUpstreamRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("upstream %s is closed\n", c.Name) })
}

func printUpstreams(a *app, upstreams ...*v1.Upstream) {
	columns(a, "UPSTREAM\tURL\tRULES\tTIMEOUT\tAUTHORIZATION", func(w *tabwriter.Writer) {
		for _, u := range upstreams {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", u.GetName(), u.GetUrl(), len(u.GetRules()), u.GetTimeout().AsDuration(), cmp.Or(u.GetAuthorizationEnv(), "none"))
		}
	})
}

// printUpstream shows all of one.
func printUpstream(a *app, u *v1.Upstream) {
	printUpstreams(a, u)
	a.printf("bodies: %s of a request, %s of a reply\n", size(int64(u.GetMaxRequestBytes())), size(int64(u.GetMaxResponseBytes())))
	a.printf("private addresses: %s\n", cmp.Or(strings.Join(u.GetPrivateRanges(), " "), "none"))
	for i, r := range u.GetRules() {
		a.printf("%d. %s\n", i+1, ruleText(r))
	}
	a.printf("otherwise GET and HEAD are READ, and all else is IRREVERSIBLE\n")
}
