package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type keyCmd struct {
	List   keyList   `cmd:"" default:"withargs" help:"List the keys that sign tokens, newest first."`
	Rotate keyRotate `cmd:"" help:"Make a new signing key; no valid token is refused for it."`
}

type keyList struct {
	operatorFlags `embed:""`
}

func (c *keyList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListKeys(ctx, &v1.ListKeysRequest{})
	if err != nil {
		return err
	}
	return show(a, res, func() { printKeys(a, res.GetKeys()...) })
}

type keyRotate struct {
	operatorFlags `embed:""`
}

func (c *keyRotate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.RotateKey(ctx, &v1.RotateKeyRequest{})
	if err != nil {
		return err
	}
	return show(a, res, func() { printKeys(a, res.GetKey()) })
}

func printKeys(a *app, keys ...*v1.SigningKey) {
	at := func(t *timestamppb.Timestamp) string {
		if t == nil {
			return "not decided"
		}
		return t.AsTime().Format(time.RFC3339)
	}
	columns(a, "KEY\tALGORITHM\tSTATE\tMADE\tSIGNS FROM\tRETIRES", func(w *tabwriter.Writer) {
		for _, k := range keys {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.GetId(), k.GetAlgorithm(), plain(k.GetState()), at(k.GetCreateTime()), at(k.GetSignsFrom()), at(k.GetRetireTime()))
		}
	})
}
