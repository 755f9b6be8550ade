package mcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/whence-db/whence/proto/gen/openapi"
)

// contract holds the schemas of the API's messages, by name. The tools' schemas are cut
// from the document that plain HTTP clients read, which is generated from the contract,
// so that the two cannot differ.
type contract map[string]*yaml.Node

func readContract() (contract, error) {
	var doc struct {
		Components struct {
			Schemas map[string]yaml.Node
		}
	}
	if err := yaml.Unmarshal(openapi.YAML, &doc); err != nil {
		return nil, fmt.Errorf("read the contract: %w", err)
	}
	c := make(contract, len(doc.Components.Schemas))
	for name, n := range doc.Components.Schemas {
		c[name] = &n
	}
	return c, nil
}

// object is a JSON object whose members keep their order: models read schemas from the
// top.
type object []member

type member struct {
	name  string
	value any
}

func (o object) get(name string) any {
	for _, m := range o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

func (o object) with(name string, value any) object {
	for i := range o {
		if o[i].name == name {
			o = slices.Clone(o)
			o[i].value = value
			return o
		}
	}
	return append(slices.Clone(o), member{name, value})
}

// MarshalJSON writes the members in order.
func (o object) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			out = append(out, ',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, name...), ':'), value...)
	}
	return append(out, '}'), nil
}

const referencePrefix = "#/components/schemas/"

// deepest bounds how far messages may hold one another; those of requests do not hold
// themselves.
const deepest = 8

// schema returns a message's JSON Schema, with what it refers to in place and closed to
// members that the message does not have.
func (c contract) schema(message string, depth int) (object, error) {
	n, ok := c[message]
	if !ok || depth > deepest {
		return nil, fmt.Errorf("the contract has no message %s that a tool can take", message)
	}
	v, err := c.convert(n, depth)
	if err != nil {
		return nil, err
	}
	o, ok := v.(object)
	if !ok {
		return nil, fmt.Errorf("the message %s is not an object", message)
	}
	return o, nil
}

func (c contract) convert(n *yaml.Node, depth int) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		return c.convertObject(n, depth)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, item := range n.Content {
			v, err := c.convert(item, depth)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.ScalarNode:
		var v any
		err := n.Decode(&v)
		return v, err
	default:
		return nil, errors.New("the contract has an alias")
	}
}

func (c contract) convertObject(n *yaml.Node, depth int) (any, error) {
	var o, referred object
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i].Value
		v, err := c.convert(n.Content[i+1], depth)
		if err != nil {
			return nil, err
		}
		if target, ok := v.(string); ok && name == "$ref" {
			if referred, err = c.schema(strings.TrimPrefix(target, referencePrefix), depth+1); err != nil {
				return nil, err
			}
			continue
		}
		o = append(o, member{name, v})
	}
	for _, m := range referred {
		own, described := o.get(m.name).(string)
		switch {
		case m.name == "description" && described && referred.get("enum") != nil:
			_, values, _ := strings.Cut(m.value.(string), "\n")
			o = o.with(m.name, own+"\n"+values) // what each value means
		case o.get(m.name) == nil:
			o = append(o, m)
		}
	}
	if o.get("properties") != nil && o.get("type") == "object" {
		o = o.with("additionalProperties", false)
	}
	return o, nil
}
