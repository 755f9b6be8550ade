package main

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/compiler/protogen"
)

// object makes a mapping of keys and values in the order given.
func object(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(pairs); i += 2 {
		n.Content = append(n.Content, value(pairs[i]), value(pairs[i+1]))
	}
	return n
}

// list makes a sequence.
func list(items ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	for _, i := range items {
		n.Content = append(n.Content, value(i))
	}
	return n
}

func value(v any) *yaml.Node {
	if n, ok := v.(*yaml.Node); ok {
		return n
	}
	var n yaml.Node
	if err := n.Encode(v); err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // only scalars come here
	}
	return &n
}

// set gives a mapping's key a value, in place of what it had.
func set(n *yaml.Node, key string, v any) {
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value(v)
			return
		}
	}
	n.Content = append(n.Content, value(key), value(v))
}

// member returns a mapping's member, and makes it when it is not there.
func member(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	v := object()
	set(n, key, v)
	return v
}

// comment returns an element's comment as one paragraph.
func comment(c protogen.CommentSet) string {
	return strings.Join(strings.Fields(string(c.Leading)), " ")
}
