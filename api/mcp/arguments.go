package mcp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"connectrpc.com/connect/v2/connectinprocess"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence"
)

// idempotencyKey is the argument that becomes the call's Idempotency-Key.
const idempotencyKey = "idempotencyKey"

// arguments travel to the service as they came and become a message behind the door,
// so that what is wrong with them is recorded and told only to who may call.
type arguments struct {
	members object // of the request in JSON, each as it came
	key     string
	err     error // *whence.Error: why they are no request
}

// arguments takes apart what a tool was called with.
func (t *tool) arguments(raw json.RawMessage) *arguments {
	a := &arguments{}
	a.err = a.read(t, raw)
	return a
}

func (a *arguments) read(t *tool, raw json.RawMessage) error {
	if raw = bytes.TrimSpace(raw); len(raw) == 0 || string(raw) == "null" {
		raw = []byte("{}")
	}
	if !json.Valid(raw) { // which a decoder would find only as it comes to it
		return malformed("", "arguments must be valid JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return malformed("", "arguments must be an object, as in "+t.example)
	}
	seen := map[string]bool{}
	for dec.More() {
		word, err := dec.Token()
		if err != nil {
			return malformed("", "arguments must be valid JSON")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return malformed("", "arguments must be valid JSON")
		}
		name, _ := word.(string)
		switch {
		case seen[name]:
			return malformed(name, fmt.Sprintf("give %.64s once", name))
		case !slices.Contains(t.takes, name):
			return malformed("", fmt.Sprintf("there is no argument %.64q; %s takes %s", name, t.name, t.takesInWords()))
		}
		seen[name] = true
		if name != idempotencyKey {
			a.members = append(a.members, member{name, value})
		} else if err := json.Unmarshal(value, &a.key); err != nil || a.key == "" {
			return malformed(name, "idempotencyKey must be text: 1 to 255 printable ASCII characters, new for every intended effect")
		}
	}
	return nil
}

func (t *tool) takesInWords() string {
	if len(t.takes) == 0 {
		return "none"
	}
	return strings.Join(t.takes, ", ")
}

func malformed(field, message string) error {
	return whence.Invalid(field, "MALFORMED_REQUEST", message)
}

// position is where protojson found fault in a text that the caller has not seen.
var position = regexp.MustCompile(`^proto:\s*(syntax error\s*)?(\(line \d+:\d+\):\s*)?`)

// copyMessage carries messages between a tool and its service. It decodes as strictly
// as the API does.
func copyMessage(dst, src any) error {
	a, ok := src.(*arguments)
	if !ok {
		return connectinprocess.ProtoCopy(dst, src)
	}
	if a.err != nil {
		return a.err
	}
	m, ok := dst.(proto.Message)
	if !ok {
		return fmt.Errorf("decode arguments: %T is not a message", dst)
	}
	if err := a.members.decode(m); err != nil {
		return a.blame(m, err)
	}
	return nil
}

func (o object) decode(m proto.Message) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(b, m)
}

// blame says which argument is at fault, which protojson does not always.
func (a *arguments) blame(m proto.Message, fault error) error {
	field := "arguments"
	for _, one := range a.members {
		if err := (object{one}).decode(m); err != nil {
			field, fault = one.name, err
			break
		}
	}
	// protojson varies its spaces, so that nobody relies on its words.
	words := strings.ReplaceAll(fault.Error(), "\u00a0", " ")
	return malformed(field, field+": "+position.ReplaceAllString(words, ""))
}

// encode writes a reply as the API does.
func encode(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Compact(&out, b)
	return out.Bytes(), err
}
