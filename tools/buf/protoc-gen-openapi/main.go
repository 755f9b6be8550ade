// Command protoc-gen-openapi is a protoc plugin that describes the services as
// OpenAPI 3.1: what plain HTTP clients send and get, in JSON.
//
// The governing idea: the description is a projection of the contract and its
// validation rules. Nothing is written in it that the server does not hold
// to, so a bound stands only where the server checks it, and a request field is
// required only where the server refuses a request without it.
//
// The parameter is base=FILE, a YAML file with everything that is not derived
// from the contract.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	var flags flag.FlagSet
	base := flags.String("base", "", "file with what the contract does not say")
	protogen.Options{ParamFunc: flags.Set}.Run(func(p *protogen.Plugin) error {
		p.SupportedFeatures = uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL)
		doc, err := document(*base, p.Files)
		if err != nil {
			return err
		}
		out := p.NewGeneratedFile("openapi.yaml", "")
		_, err = out.Write(doc)
		return err
	})
}

// document appends what the files to generate say to the base document.
func document(base string, files []*protogen.File) ([]byte, error) {
	text, err := os.ReadFile(base)
	if err != nil {
		return nil, fmt.Errorf("read the base document: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("read the base document: %w", err)
	}
	if len(doc.Content) != 1 {
		return nil, fmt.Errorf("%s is empty", base)
	}
	root := doc.Content[0]
	schemas := member(member(root, "components"), "schemas")

	s := &schemer{schemas: schemas, seen: map[protoreflect.FullName]bool{}}
	tags, paths := list(), object()
	for _, f := range files {
		if !f.Generate {
			continue
		}
		for _, svc := range f.Services {
			tags.Content = append(tags.Content, object("name", svc.GoName, "description", comment(svc.Comments)))
			for _, m := range svc.Methods {
				set(paths, fmt.Sprintf("/%s/%s", svc.Desc.FullName(), m.Desc.Name()), s.path(svc, m))
			}
		}
	}
	set(root, "tags", tags)
	set(root, "paths", paths)

	var out bytes.Buffer
	out.WriteString("# Generated from proto/whence/v1. DO NOT EDIT.\n")
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, err
	}
	return out.Bytes(), enc.Close()
}

// path describes one call.
func (s *schemer) path(svc *protogen.Service, m *protogen.Method) *yaml.Node {
	in, out := s.ref(m.Input), s.ref(m.Output)
	pure := m.Desc.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() ==
		descriptorpb.MethodOptions_NO_SIDE_EFFECTS
	operation := func(id string) *yaml.Node {
		return object(
			"tags", list(svc.GoName),
			"operationId", fmt.Sprintf("%s_%s%s", svc.GoName, m.GoName, id),
			"description", comment(m.Comments),
		)
	}
	responses := func(media string) *yaml.Node {
		return object(
			"200", object(
				"description", "The call succeeded.",
				"content", object(media, object("schema", out)),
			),
			"default", object("$ref", "#/components/responses/Error"),
		)
	}
	post := operation("")
	media := "application/json"
	if m.Desc.IsStreamingServer() {
		// A stream has its own framing, which a schema cannot say.
		media = "application/connect+json"
		set(post, "description", comment(m.Comments)+
			" A stream: the request and every message of the response are preceded by one byte of flags and four of length, big-endian.")
	}
	if strings.Contains(comment(m.Comments), "Idempotency-Key") {
		set(post, "parameters", list(object("$ref", "#/components/parameters/IdempotencyKey")))
	}
	set(post, "requestBody", object(
		"required", true,
		"content", object(media, object("schema", in)),
	))
	set(post, "responses", responses(media))
	item := object("post", post)
	if pure && !m.Desc.IsStreamingServer() {
		get := operation("_GET")
		set(get, "parameters", list(
			object("$ref", "#/components/parameters/Connect"),
			object("$ref", "#/components/parameters/Encoding"),
			object(
				"name", "message",
				"in", "query",
				"required", true,
				"description", "The request.",
				"content", object("application/json", object("schema", in)),
			),
		))
		set(get, "responses", responses("application/json"))
		set(item, "get", get)
	}
	return item
}
