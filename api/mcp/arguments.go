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
	body []byte // the request in JSON
	key  string
	err  error // *whence.Error: why they are no request
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
	dec := json.NewDecoder(bytes.NewReader(raw))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return malformed("", "arguments must be an object, as in "+t.example)
	}
	var members []string
	body := []byte{'{'}
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
		case slices.Contains(members, name):
			return malformed(name, fmt.Sprintf("give %.64s once", name))
		case !slices.Contains(t.takes, name):
			return malformed("", fmt.Sprintf("there is no argument %.64q; %s takes %s", name, t.name, t.takesInWords()))
		}
		members = append(members, name)
		if name == idempotencyKey {
			if err := json.Unmarshal(value, &a.key); err != nil || a.key == "" {
				return malformed(name, "idempotencyKey must be text: 1 to 255 printable ASCII characters, new for every intended effect")
			}
			continue
		}
		if len(body) > 1 {
			body = append(body, ',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return err
		}
		body = append(append(append(body, quoted...), ':'), value...)
	}
	a.body = append(body, '}')
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
	if err := protojson.Unmarshal(a.body, m); err != nil {
		// protojson varies its spaces, so that nobody relies on its words.
		words := strings.ReplaceAll(err.Error(), "\u00a0", " ")
		return malformed("", "arguments: "+position.ReplaceAllString(words, ""))
	}
	return nil
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
