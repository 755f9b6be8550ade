package embeddertest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"
)

type request struct {
	Model          string   `json:"model"`
	Input          []string `json:"input"`
	EncodingFormat string   `json:"encoding_format"`
	Dimensions     int      `json:"dimensions"`
}

type item struct {
	Object    string `json:"object"`
	Index     *int   `json:"index,omitempty"`
	Embedding any    `json:"embedding"`
}

func (s *Server) embeddings(w http.ResponseWriter, r *http.Request) {
	if key := s.config.APIKey; key != "" && r.Header.Get("Authorization") != "Bearer "+key {
		refuse(w, http.StatusUnauthorized, "Incorrect API key provided: "+r.Header.Get("Authorization"))
		return
	}
	var q request
	// Read to the end, or the end of the client would go unnoticed.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 256<<20))
	if err != nil || json.Unmarshal(body, &q) != nil || len(q.Input) == 0 {
		refuse(w, http.StatusBadRequest, "the request is not valid")
		return
	}
	if m := s.config.Model; m != "" && q.Model != m {
		refuse(w, http.StatusNotFound, fmt.Sprintf("the model %q does not exist", q.Model))
		return
	}
	fault := s.receive(q.Input)
	if fault.Kind != Drip && !wait(r, fault.Delay) {
		return
	}
	if limit := s.config.MaxBatch; limit > 0 && len(q.Input) > limit {
		refuse(w, http.StatusUnprocessableEntity, fmt.Sprintf("batch of %d is larger than %d", len(q.Input), limit))
		return
	}
	for i, text := range q.Input {
		if limit := s.config.MaxTextBytes; text == "" || limit > 0 && len(text) > limit {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("input %d is empty or longer than the model's context", i))
			return
		}
	}
	s.respond(w, r, q, fault)
}

func (s *Server) respond(w http.ResponseWriter, r *http.Request, q request, f Fault) {
	switch f.Kind {
	case Status:
		status := f.Status
		if status == 0 {
			status = http.StatusInternalServerError
		}
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
		}
		refuse(w, status, f.Message)
	case Redirect:
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
	case Stall:
		wait(r, time.Hour)
	case HangUp:
		panic(http.ErrAbortHandler)
	case NotJSON:
		fmt.Fprint(w, "<html><body>welcome to the proxy</body></html>")
	case ErrorBody:
		fmt.Fprint(w, `{"error":{"message":"no capacity"}}`)
	case Endless:
		fmt.Fprint(w, `{"data":[{"index":0,"embedding":[`)
		for line := bytes.Repeat([]byte("0.5,"), 4096); r.Context().Err() == nil; {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	default:
		s.vectorsFor(w, r, q, f)
	}
}

// vectorsFor answers with vectors, spoilt or broken off as f says.
func (s *Server) vectorsFor(w http.ResponseWriter, r *http.Request, q request, f Fault) {
	items, good, err := s.items(r, q, f)
	if err != nil {
		return // the client has gone
	}
	body, err := json.Marshal(map[string]any{"object": "list", "model": q.Model, "data": items,
		"usage": map[string]int{"prompt_tokens": len(q.Input), "total_tokens": len(q.Input)}})
	if err != nil {
		panic(err) // items are plain values
	}
	w.Header().Set("Content-Type", "application/json")
	switch f.Kind {
	case Malformed:
		body = body[:len(body)/2]
	case LiteralNaN:
		body = bytes.Replace(body, []byte(`"embedding":[`), []byte(`"embedding":[NaN,`), 1)
	case Cut:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	case Drip:
		for i := range body {
			if _, err := w.Write(body[i : i+1]); err != nil || http.NewResponseController(w).Flush() != nil || !wait(r, f.Delay) {
				return
			}
		}
		s.count(good)
		return
	}
	// Counted first: a client that has its answer must find it counted.
	if f.Kind != Malformed && f.Kind != LiteralNaN {
		s.count(good)
	}
	_, _ = w.Write(body)
}

// items returns the response's vectors and the texts whose vector is good.
func (s *Server) items(r *http.Request, q request, f Fault) (items []item, good []string, err error) {
	vectors, err := s.vectors.Embed(r.Context(), q.Input)
	if err != nil {
		return nil, nil, err
	}
	sound := f.Kind == None || f.Kind == Unordered || f.Kind == NoIndexes || f.Kind == Unscaled || f.Kind == Drip
	perText := f.Kind == NullComponent || f.Kind == NullVector || f.Kind == Overflow || f.Kind == ZeroVector
	for i, text := range q.Input {
		spoilt := perText && f.matches(text) || f.Kind == WrongDimensions || f.Kind == Unscaled ||
			f.Kind == OneWrong && i == len(q.Input)-1
		vector := encode(vectors[i], q.EncodingFormat)
		if spoilt {
			vector = spoil(vectors[i], f.Kind)
		}
		if sound || perText && !spoilt {
			good = append(good, text)
		}
		items = append(items, item{Object: "embedding", Index: &i, Embedding: vector})
	}
	return rearrange(items, f.Kind), good, nil
}

func encode(v []float32, format string) any {
	if format != "base64" {
		return v
	}
	data := make([]byte, 0, 4*len(v))
	for _, x := range v {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(data)
}

func spoil(v []float32, kind Kind) any {
	switch kind {
	case NullVector:
		return nil
	case ZeroVector:
		return make([]float32, len(v))
	case WrongDimensions, OneWrong:
		return v[:len(v)-1]
	}
	components := make([]any, len(v))
	for i, x := range v {
		components[i] = x
		if kind == Unscaled {
			components[i] = float64(x) * 1000
		}
	}
	switch kind {
	case NullComponent:
		components[len(v)/2] = nil
	case Overflow:
		components[len(v)/2] = json.RawMessage("1e999")
	}
	return components
}

func rearrange(items []item, kind Kind) []item {
	switch kind {
	case TooFew:
		return items[:len(items)-1]
	case TooMany:
		extra := len(items)
		return append(items, item{Object: "embedding", Index: &extra, Embedding: items[0].Embedding})
	case Unordered:
		for i, j := 0, len(items)-1; i < j; i, j = i+1, j-1 {
			items[i], items[j] = items[j], items[i]
		}
	case NoIndexes:
		for i := range items {
			items[i].Index = nil
		}
	case RepeatedIndex:
		for i := range items {
			items[i].Index = new(int)
		}
		if len(items) == 1 {
			*items[0].Index = 1
		}
	}
	return items
}

func (s *Server) count(texts []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range texts {
		s.embedded[text]++
	}
}

// wait returns false when the client has gone or the server is switched off.
func wait(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-timer.C:
		return true
	}
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"message": message}})
}
