package action

// InputSchema is the JSON Schema (2020-12) of the action's arguments, for agents.
func InputSchema(d Definition) map[string]any {
	properties, required := map[string]any{}, []any{}
	for _, p := range d.Parameters {
		properties[p.Name] = p.schema()
		if p.Required {
			required = append(required, p.Name)
		}
	}
	return map[string]any{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
		"properties": properties, "required": required, "additionalProperties": false}
}

func (p Parameter) schema() map[string]any {
	s := map[string]any{}
	switch p.Type {
	case Text:
		s["type"], s["maxLength"] = "string", float64(p.length())
		if len(p.Values) > 0 {
			var values []any
			for _, v := range p.Values {
				values = append(values, v)
			}
			s["enum"] = values
		}
	case Integer:
		s["type"], s["pattern"] = []any{"integer", "string"}, `^-?(0|[1-9][0-9]*)$`
	case Number:
		s["type"], s["pattern"] = []any{"number", "string"}, numeral.String()
	case Boolean:
		s["type"] = "boolean"
	case Time:
		s["type"], s["format"] = "string", "date-time"
	case UUID:
		s["type"], s["format"] = "string", "uuid"
	case JSON: // a schema without a type takes any value
	}
	if p.Minimum != nil {
		s["minimum"] = *p.Minimum
	}
	if p.Maximum != nil {
		s["maximum"] = *p.Maximum
	}
	if p.Description != "" {
		s["description"] = p.Description
	}
	return s
}
