package main

import (
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// schemer collects the schema of every message and enum that is referred to.
type schemer struct {
	schemas *yaml.Node
	seen    map[protoreflect.FullName]bool
}

// wellKnown are the messages that JSON writes as something other than an object
// of their fields.
var wellKnown = map[protoreflect.FullName]func() *yaml.Node{
	"google.protobuf.Timestamp": func() *yaml.Node { return object("type", "string", "format", "date-time") },
	"google.protobuf.Duration": func() *yaml.Node {
		return object("type", "string", "pattern", `^-?[0-9]+(\.[0-9]{1,9})?s$`, "examples", list("86400s"))
	},
	"google.protobuf.Struct": func() *yaml.Node { return object("type", "object", "additionalProperties", true) },
}

// ref returns a reference to a message's schema.
func (s *schemer) ref(m *protogen.Message) *yaml.Node {
	if inline, ok := wellKnown[m.Desc.FullName()]; ok {
		return inline()
	}
	if !s.seen[m.Desc.FullName()] {
		s.seen[m.Desc.FullName()] = true
		schema := object()
		set(s.schemas, m.GoIdent.GoName, schema)
		s.message(schema, m)
	}
	return object("$ref", "#/components/schemas/"+m.GoIdent.GoName)
}

func (s *schemer) message(schema *yaml.Node, m *protogen.Message) {
	properties, required := object(), list()
	for _, f := range m.Fields {
		set(properties, f.Desc.JSONName(), s.field(f))
		if mandatory(f) {
			required.Content = append(required.Content, value(f.Desc.JSONName()))
		}
	}
	set(schema, "type", "object")
	set(schema, "description", comment(m.Comments))
	if len(properties.Content) > 0 {
		set(schema, "properties", properties)
	}
	if len(required.Content) > 0 {
		set(schema, "required", required)
	}
	exactlyOne(schema, m)
}

// exactlyOne says of which fields a request must have one: those of a oneof,
// or of a rule that works like one.
func exactlyOne(schema *yaml.Node, m *protogen.Message) {
	choose := func(names []string) {
		branches := list()
		for _, n := range names {
			branches.Content = append(branches.Content, object("required", list(n)))
		}
		set(schema, "oneOf", branches)
	}
	for _, o := range m.Oneofs {
		rules, _ := proto.GetExtension(o.Desc.Options(), validate.E_Oneof).(*validate.OneofRules)
		if o.Desc.IsSynthetic() || !rules.GetRequired() {
			continue
		}
		var names []string
		for _, f := range o.Fields {
			names = append(names, f.Desc.JSONName())
		}
		choose(names)
	}
	rules, _ := proto.GetExtension(m.Desc.Options(), validate.E_Message).(*validate.MessageRules)
	for _, o := range rules.GetOneof() {
		if !o.GetRequired() {
			continue
		}
		var names []string
		for _, n := range o.GetFields() {
			names = append(names, m.Desc.Fields().ByName(protoreflect.Name(n)).JSONName())
		}
		choose(names)
	}
}

func rulesOf(f *protogen.Field) *validate.FieldRules {
	rules, _ := proto.GetExtension(f.Desc.Options(), validate.E_Field).(*validate.FieldRules)
	return rules
}

// mandatory reports whether the zero value, which is what an absent field has,
// is refused.
func mandatory(f *protogen.Field) bool {
	r := rulesOf(f)
	switch {
	case r.GetRequired():
		return true
	case f.Desc.HasPresence() || r.GetIgnore() != validate.Ignore_IGNORE_UNSPECIFIED:
		return false
	case f.Desc.IsList():
		return r.GetRepeated().GetMinItems() > 0
	}
	str := r.GetString()
	return str.GetMinLen() > 0 || str.GetPattern() != "" || str.GetUri() || str.GetPrefix() != "" ||
		len(str.GetIn()) > 0 || len(r.GetEnum().GetNotIn()) > 0
}

func (s *schemer) field(f *protogen.Field) *yaml.Node {
	rules := rulesOf(f)
	var schema *yaml.Node
	switch {
	case f.Desc.IsMap():
		val := f.Message.Fields[1]
		schema = object("type", "object", "additionalProperties", s.single(val, rules.GetMap().GetValues()))
		if r := rules.GetMap(); r != nil {
			bound(schema, "maxProperties", r.MaxPairs)
		}
	case f.Desc.IsList():
		schema = object("type", "array", "items", s.single(f, rules.GetRepeated().GetItems()))
		if r := rules.GetRepeated(); r != nil {
			bound(schema, "minItems", r.MinItems)
			bound(schema, "maxItems", r.MaxItems)
			if r.GetUnique() {
				set(schema, "uniqueItems", true)
			}
		}
	default:
		schema = s.single(f, rules)
	}
	set(schema, "description", comment(f.Comments))
	return schema
}

// single describes one value of a field's type.
func (s *schemer) single(f *protogen.Field, rules *validate.FieldRules) *yaml.Node {
	switch f.Desc.Kind() {
	case protoreflect.MessageKind:
		schema := s.ref(f.Message)
		for _, c := range rules.GetCel() {
			// A key's values are text; other members of objects may be null.
			if c.GetId() == "key.text" {
				set(schema, "additionalProperties", object("type", "string"))
			}
		}
		return schema
	case protoreflect.EnumKind:
		return s.enum(f.Enum)
	case protoreflect.BoolKind:
		return object("type", "boolean")
	case protoreflect.BytesKind:
		return object("type", "string", "contentEncoding", "base64")
	case protoreflect.DoubleKind:
		schema := object("type", "number")
		if d, ok := rules.GetDouble().GetGreaterThan().(*validate.DoubleRules_Gte); ok {
			set(schema, "minimum", d.Gte)
		}
		if d, ok := rules.GetDouble().GetLessThan().(*validate.DoubleRules_Lte); ok {
			set(schema, "maximum", d.Lte)
		}
		return schema
	case protoreflect.Uint32Kind:
		schema := object("type", "integer", "minimum", rules.GetUint32().GetGte(), "maximum", uint32(1<<32-1))
		if u, ok := rules.GetUint32().GetLessThan().(*validate.UInt32Rules_Lte); ok {
			set(schema, "maximum", u.Lte)
		}
		return schema
	case protoreflect.Int64Kind:
		return object("type", list("string", "integer"), "format", "int64")
	case protoreflect.StringKind:
		return text(rules.GetString())
	}
	panic("no schema for fields of kind " + f.Desc.Kind().String()) // generating must fail, not leave a gap
}

func text(r *validate.StringRules) *yaml.Node {
	schema := object("type", "string")
	if r == nil {
		return schema
	}
	bound(schema, "minLength", r.MinLen)
	bound(schema, "maxLength", r.MaxLen)
	if r.MaxBytes != nil && r.MaxLen == nil {
		bound(schema, "maxLength", r.MaxBytes)
	}
	if r.Pattern != nil {
		set(schema, "pattern", r.GetPattern())
	}
	if r.Prefix != nil {
		set(schema, "pattern", "^"+r.GetPrefix())
	}
	if r.GetUri() {
		set(schema, "format", "uri")
	}
	if len(r.GetIn()) > 0 {
		set(schema, "enum", r.GetIn())
	}
	return schema
}

func bound(schema *yaml.Node, key string, n *uint64) {
	if n != nil {
		set(schema, key, *n)
	}
}

func (s *schemer) enum(e *protogen.Enum) *yaml.Node {
	if !s.seen[e.Desc.FullName()] {
		s.seen[e.Desc.FullName()] = true
		values, says := list(), []string{comment(e.Comments)}
		for _, v := range e.Values {
			values.Content = append(values.Content, value(string(v.Desc.Name())))
			says = append(says, "* "+string(v.Desc.Name())+": "+comment(v.Comments))
		}
		set(s.schemas, e.GoIdent.GoName, object(
			"type", "string", "description", strings.Join(says, "\n"), "enum", values))
	}
	return object("$ref", "#/components/schemas/"+e.GoIdent.GoName)
}
