package proto_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/whence-db/whence/proto/gen/openapi"
	_ "github.com/whence-db/whence/proto/gen/whence/v1"
)

func services(t *testing.T) []protoreflect.ServiceDescriptor {
	t.Helper()
	var out []protoreflect.ServiceDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("whence.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			out = append(out, f.Services().Get(i))
		}
		return true
	})
	if len(out) == 0 {
		t.Fatal("the package whence.v1 has no services")
	}
	return out
}

func methods(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var out []protoreflect.MethodDescriptor
	for _, s := range services(t) {
		for i := range s.Methods().Len() {
			out = append(out, s.Methods().Get(i))
		}
	}
	return out
}

// TestRequests reads testdata/requests.txt: which requests pass, and which
// field of the others is at fault.
func TestRequests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		want, body, ok := strings.Cut(strings.TrimSpace(rest), " ")
		if !ok {
			t.Fatalf("line %d: want a message, ok or a field, and JSON: %s", n+1, line)
		}
		mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("whence.v1." + name))
		if err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		msg := mt.New().Interface()
		if err := protojson.Unmarshal([]byte(body), msg); err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		if got := fault(t, msg); got != want {
			t.Errorf("line %d: %s\n\tgot %s, want %s", n+1, line, got, want)
		}
	}
}

// fault returns the path of the first field that validation refuses, "." for
// the message itself, or "ok".
func fault(t *testing.T, msg proto.Message) string {
	t.Helper()
	err := protovalidate.Validate(msg)
	if err == nil {
		return "ok"
	}
	var failed *protovalidate.ValidationError
	if !errors.As(err, &failed) {
		t.Fatalf("validate %T: %v", msg, err)
	}
	if path := protovalidate.FieldPathString(failed.Violations[0].Proto.GetField()); path != "" {
		return path
	}
	return "."
}

// TestEveryRequestFieldIsBounded holds that no caller can send a string, list or
// map of any size it likes.
func TestEveryRequestFieldIsBounded(t *testing.T) {
	t.Parallel()
	seen := map[protoreflect.FullName]bool{}
	for _, m := range methods(t) {
		checkBounds(t, m.Input(), seen)
	}
}

func checkBounds(t *testing.T, m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) {
	t.Helper()
	if seen[m.FullName()] || !strings.HasPrefix(string(m.FullName()), "whence.v1.") {
		return
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
		single := rules
		switch {
		case f.IsMap():
			of := f.MapValue().Message()
			if rules.GetMap().GetMaxPairs() == 0 || !bounded(rules.GetMap().GetKeys()) || of == nil && !bounded(rules.GetMap().GetValues()) {
				t.Errorf("%s: the map, its keys or its values have no bound", f.FullName())
			}
			if of != nil {
				checkBounds(t, of, seen)
			}
			continue
		case f.IsList():
			if rules.GetRepeated().GetMaxItems() == 0 {
				t.Errorf("%s: the list has no bound", f.FullName())
			}
			single = rules.GetRepeated().GetItems()
		}
		switch f.Kind() {
		case protoreflect.StringKind:
			if !bounded(single) {
				t.Errorf("%s: the string has no bound", f.FullName())
			}
		case protoreflect.EnumKind:
			if !single.GetEnum().GetDefinedOnly() {
				t.Errorf("%s: undefined enum values are let in", f.FullName())
			}
		case protoreflect.MessageKind:
			if f.Message().FullName() == "google.protobuf.Duration" && rules.GetDuration().GetLessThan() == nil {
				t.Errorf("%s: the duration has no bound", f.FullName())
			}
			checkBounds(t, f.Message(), seen)
		}
	}
}

// bounded reports whether a string rule bounds the length; a pattern does when
// it is anchored and repeats nothing without end.
func bounded(r *validate.FieldRules) bool {
	s := r.GetString()
	p := s.GetPattern()
	return s.GetMaxLen() > 0 || s.GetMaxBytes() > 0 || len(s.GetIn()) > 0 ||
		strings.HasPrefix(p, "^") && strings.HasSuffix(p, "$") && !strings.ContainsAny(p, "*+")
}

// TestSideEffects holds that exactly the calls that read can be made by GET or
// sent again by a client on its own.
func TestSideEffects(t *testing.T) {
	t.Parallel()
	for _, m := range methods(t) {
		name := string(m.Name())
		reads := name == "Export"
		for _, p := range []string{"Get", "List", "Trace", "Watch"} {
			reads = reads || strings.HasPrefix(name, p)
		}
		level := m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel()
		if marked := level == descriptorpb.MethodOptions_NO_SIDE_EFFECTS; marked != reads {
			t.Errorf("%s: NO_SIDE_EFFECTS is %v, want %v", m.FullName(), marked, reads)
		}
	}
}

// TestOpenAPI holds that the description has every call and no dangling
// reference.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	var doc struct {
		OpenAPI    string                               `yaml:"openapi"`
		Paths      map[string]map[string]map[string]any `yaml:"paths"`
		Components map[string]map[string]any            `yaml:"components"`
	}
	if err := yaml.Unmarshal(openapi.YAML, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi is %q", doc.OpenAPI)
	}
	all := methods(t)
	for _, m := range all {
		path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		if doc.Paths[path]["post"] == nil {
			t.Errorf("%s has no POST", path)
		}
	}
	if len(doc.Paths) != len(all) {
		t.Errorf("%d paths for %d calls", len(doc.Paths), len(all))
	}
	for _, line := range strings.Split(string(openapi.YAML), "\n") {
		_, ref, ok := strings.Cut(line, "$ref: ")
		if !ok {
			continue
		}
		parts := strings.Split(strings.Trim(ref, `'"`), "/")
		if len(parts) != 4 || doc.Components[parts[2]][parts[3]] == nil {
			t.Errorf("dangling reference %s", ref)
		}
	}
}
