package remote

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

var errDimensions = errors.New("wrong number of dimensions")

// Vectors checks a response to count texts and returns its vectors at length 1,
// in the order of the texts. An error condemns the response. faults holds texts
// whose own vector is unusable while the response is otherwise sound; their
// vector is nil. dimensions is 0 while unknown: then all must agree. tokens is
// what the server reports, even together with an error; 0 when it does not.
func (p Protocol) Vectors(body []byte, count, dimensions int) (vectors [][]float32, faults map[int]error, tokens int64, err error) {
	answer, err := p.Decode(body)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("malformed response of %d bytes: %w", len(body), err)
	}
	if len(answer.Items) != count {
		if message := serverMessage(body); message != "" && len(answer.Items) == 0 {
			return nil, nil, answer.Tokens, errors.New(message)
		}
		return nil, nil, answer.Tokens, fmt.Errorf("%d vectors for %d texts", len(answer.Items), count)
	}
	vectors, faults, err = place(answer.Items, dimensions)
	return vectors, faults, answer.Tokens, err
}

// place puts each item's vector where its text is.
func place(items []Item, dimensions int) (vectors [][]float32, faults map[int]error, err error) {
	vectors, faults = make([][]float32, len(items)), make(map[int]error)
	seen := make([]bool, len(items))
	for position, item := range items {
		i := position
		if (item.Index == nil) != (items[0].Index == nil) {
			return nil, nil, errors.New("some vectors have an index and some have none")
		}
		if item.Index != nil {
			i = *item.Index
		}
		if i < 0 || i >= len(items) || seen[i] {
			return nil, nil, fmt.Errorf("vector index %d is out of range or repeated", i)
		}
		seen[i] = true
		vector, err := parseVector(item.Vector)
		if err != nil {
			faults[i] = err
			continue
		}
		if dimensions == 0 {
			dimensions = len(vector)
		}
		if len(vector) != dimensions || dimensions > maxDimensions {
			return nil, nil, fmt.Errorf("%w: %d, want %d", errDimensions, len(vector), min(dimensions, maxDimensions))
		}
		if err := normalise(vector); err != nil {
			faults[i] = err
			continue
		}
		vectors[i] = vector
	}
	return vectors, faults, nil
}

// DecodeIndexed is Decode for responses of OpenAI's shape.
func DecodeIndexed(body []byte) (Answer, error) {
	var response struct {
		Data []struct {
			Index     *int            `json:"index"`
			Embedding json.RawMessage `json:"embedding"`
		} `json:"data"`
		Usage json.RawMessage `json:"usage"`
	}
	if err := json.Unmarshal(body, &response); err != nil {
		return Answer{}, err
	}
	a := Answer{Items: make([]Item, len(response.Data))}
	for i, d := range response.Data {
		a.Items[i] = Item{Index: d.Index, Vector: d.Embedding}
	}
	var usage struct {
		Total int64 `json:"total_tokens"`
	}
	if json.Unmarshal(response.Usage, &usage) == nil { // of another shape, it says nothing
		a.Tokens = usage.Total
	}
	return a, nil
}

// parseVector reads an array of numbers, or base64 of little-endian float32s.
// raw is well-formed JSON or empty. Unmarshalling into a slice of floats would
// take null for 0.
func parseVector(raw json.RawMessage) ([]float32, error) {
	if len(raw) == 0 || (raw[0] != '[' && raw[0] != '"') {
		return nil, errors.New("no vector")
	}
	if raw[0] == '"' {
		return parseBase64(raw)
	}
	list := strings.TrimSpace(string(raw[1 : len(raw)-1]))
	if list == "" {
		return nil, errors.New("empty vector")
	}
	vector := make([]float32, 0, strings.Count(list, ",")+1)
	for number := range strings.SplitSeq(list, ",") {
		x, err := strconv.ParseFloat(strings.TrimSpace(number), 32)
		if err != nil {
			return nil, fmt.Errorf("component %d is not a finite number", len(vector))
		}
		vector = append(vector, float32(x))
	}
	return vector, nil
}

func parseBase64(raw json.RawMessage) ([]float32, error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return nil, errors.New("vector is not a string")
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(data) == 0 || len(data)%4 != 0 {
		return nil, errors.New("vector is not base64 of whole numbers of 4 bytes")
	}
	vector := make([]float32, len(data)/4)
	for i := range vector {
		vector[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return vector, nil
}

// normalise scales v to length 1 in place. It refuses a vector without a
// direction. In float64 the squares of float32s can neither overflow nor vanish.
func normalise(v []float32) error {
	var squares float64
	for _, x := range v {
		squares += float64(x) * float64(x)
	}
	if squares == 0 || math.IsNaN(squares) || math.IsInf(squares, 0) {
		return errors.New("vector is zero or not finite")
	}
	norm := math.Sqrt(squares)
	for i, x := range v {
		v[i] = float32(float64(x) / norm)
	}
	return nil
}

// serverMessage finds the words in an error body of the shapes that servers
// use. Structured detail and pages are left out: they tend to repeat the input.
func serverMessage(body []byte) string {
	var shape struct {
		Error   json.RawMessage `json:"error"`
		Message json.RawMessage `json:"message"`
		Detail  json.RawMessage `json:"detail"`
	}
	if json.Unmarshal(body, &shape) != nil {
		return ""
	}
	var nested struct {
		Message json.RawMessage `json:"message"`
	}
	_ = json.Unmarshal(shape.Error, &nested) // another shape leaves it empty
	for _, raw := range []json.RawMessage{nested.Message, shape.Error, shape.Message, shape.Detail} {
		var text string
		if json.Unmarshal(raw, &text) == nil && text != "" {
			return text
		}
	}
	return ""
}

// shorten puts text on one line of bounded length.
func shorten(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	const limit = 200
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit]) + "…"
	}
	return text
}
