package main

import (
	"fmt"
	"reflect"
	"time"

	"github.com/alecthomas/kong"
)

// How flags read times and durations: refusing others, they say what is wanted.
var (
	readTime = mapper(func(s string) (time.Time, error) { return time.Parse(time.RFC3339, s) },
		"want a time, as in 2006-01-02T15:04:05Z")
	readDuration = mapper(time.ParseDuration, "want a duration with its unit, as in 30s, 30m or 1h30m")
)

func mapper[T any](parse func(string) (T, error), want string) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		var s string
		if err := ctx.Scan.PopValueInto("value", &s); err != nil {
			return err
		}
		v, err := parse(s)
		if err != nil {
			return fmt.Errorf("%s, not %q", want, s)
		}
		target.Set(reflect.ValueOf(v))
		return nil
	}
}
