package mcp

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/whence-db/whence"
)

// all are the tools with their arguments.
func all(t testing.TB) map[string]*tool {
	t.Helper()
	c, err := readContract()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*tool{}
	for _, one := range tools {
		if err := one.read(c); err != nil {
			t.Fatal(err)
		}
		out[one.name] = &one
	}
	return out
}

// messageOf is the request that a tool's call takes.
func messageOf(t testing.TB, one *tool) protoreflect.MessageType {
	t.Helper()
	typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("whence.v1." + one.request))
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

// Each tool takes exactly what its call takes, and answers with that call's reply.
func TestToolsAreCalls(t *testing.T) {
	t.Parallel()
	for name, one := range all(t) {
		var want []string
		fields := messageOf(t, one).Descriptor().Fields()
		for i := range fields.Len() {
			want = append(want, fields.Get(i).JSONName())
		}
		got := slices.DeleteFunc(slices.Clone(one.takes), func(s string) bool { return s == idempotencyKey })
		if !slices.Equal(got, want) {
			t.Errorf("%s takes %v, its call takes %v", name, got, want)
		}
		procedure := strings.Split(strings.TrimPrefix(one.procedure, "/"), "/")
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(procedure[0] + "." + procedure[1]))
		if err != nil {
			t.Fatal(err)
		}
		m := d.(protoreflect.MethodDescriptor)
		if m.Input().Name() != protoreflect.Name(one.request) || m.Output() != one.reply().ProtoReflect().Descriptor() {
			t.Errorf("%s: %s takes %s and returns %s", name, one.procedure, m.Input().Name(), m.Output().Name())
		}
		if !strings.Contains(one.example, "…") {
			if a := one.arguments(json.RawMessage(one.example)); copyMessage(messageOf(t, one).New().Interface(), a) != nil {
				t.Errorf("%s: its example is refused: %s", name, one.example)
			}
		}
	}
}

// A schema is closed and described at every depth, and refers to nothing outside itself.
func TestSchemasAreWhole(t *testing.T) {
	t.Parallel()
	for name, one := range all(t) {
		b, err := json.Marshal(one.input)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "$ref") || !strings.HasPrefix(string(b), `{"type":"object","properties":{`) {
			t.Errorf("%s: %s", name, b)
		}
		var schema map[string]any
		if err := json.Unmarshal(b, &schema); err != nil {
			t.Fatal(err)
		}
		whole(t, name, schema)
	}
	b, err := json.Marshal(all(t)["query"].input)
	if err != nil || !strings.Contains(string(b), `"halfLife":{"type":"string"`) {
		t.Errorf("what query refers to is not in it: %s, %v", b, err)
	}
}

func whole(t *testing.T, path string, schema map[string]any) {
	t.Helper()
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		return
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%s is open", path)
	}
	for name, p := range properties {
		property, ok := p.(map[string]any)
		if !ok || property["description"] == nil || property["type"] == nil {
			t.Errorf("%s.%s: %v", path, name, p)
		}
		whole(t, path+"."+name, property)
	}
}

// What is taken apart is what came, and what is refused says why.
func FuzzArguments(f *testing.F) {
	known := all(f)
	for _, seed := range []string{"", "null", "{}", "[]", `{"text":"x"}`, `{"text":"x","text":"y"}`, `{"text":7,"idempotencyKey":"k"}`, `{"idempotencyKey":null}`,
		`{"text":"<\u2028>","attributes":{"a":null}}`, `{"text":"\ud800"}`, `{"text":"x"} {}`, `{"text"`, `{"key":1e400}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		one := known["remember"]
		a := one.arguments(json.RawMessage(raw))
		m := messageOf(t, one).New().Interface()
		if err := copyMessage(m, a); err != nil {
			var e *whence.Error
			if !errors.As(err, &e) || !errors.Is(e.Kind, whence.ErrInvalid) || e.Reason == "" || e.Message == "" {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		var want map[string]any
		if s := strings.TrimSpace(raw); s == "" || s == "null" {
			return
		} else if err := json.Unmarshal([]byte(s), &want); err != nil {
			t.Fatalf("%q was taken: %v", raw, err)
		}
		if key, _ := want[idempotencyKey].(string); key != a.key {
			t.Fatalf("%q: key %q", raw, a.key)
		}
		delete(want, idempotencyKey)
		if len(want) != len(a.members) {
			t.Fatalf("%q became %v", raw, a.members)
		}
	})
}
