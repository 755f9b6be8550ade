package action

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Credential is what an operand can take from the caller's credential.
type Credential struct {
	User, Agent, Task, Execution string
}

func (c Credential) part(name string) string {
	return map[string]string{"user": c.User, "agent": c.Agent, "task": c.Task, "execution": c.Execution}[name]
}

var errNoReply = errors.New("there is no reply to take a value from")

// JSON returns the operand's value; ok is false when it is an argument that was not
// given. An operand that takes its value from a reply is not resolved here.
func (o Operand) JSON(args Args, c Credential) (_ json.RawMessage, ok bool, err error) {
	v, ok, err := o.value(args, c)
	return v.json, ok, err
}

// value is JSON with what Postgres takes.
func (o Operand) value(args Args, c Credential) (v value, ok bool, err error) {
	switch {
	case o.Result != nil:
		return v, false, errNoReply
	case o.Parameter != "":
		v, ok = args.values[o.Parameter]
		return v, ok, nil
	case o.Credential != "":
		v, err = ofText(c.part(o.Credential), c.part(o.Credential))
		return v, err == nil, err
	}
	var is any
	if err := json.Unmarshal(o.Constant, &is); err != nil {
		return v, false, fmt.Errorf("read a constant: %w", err)
	}
	if v.json, err = canonical(o.Constant); err != nil {
		return v, false, fmt.Errorf("read a constant: %w", err)
	}
	text := string(v.json)
	switch is := is.(type) {
	case nil:
		return v, true, nil
	case string:
		text = is
	}
	v.text = &text
	return v, true, nil
}
