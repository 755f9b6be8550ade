package embeddertest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

func (s *Server) embeddings(w http.ResponseWriter, r *http.Request, d dialect) {
	refuse := func(status int, message string) { refuse(w, d, status, message) }
	if key := s.config.APIKey; key != "" && r.Header.Get("Authorization") != "Bearer "+key {
		refuse(http.StatusUnauthorized, "Incorrect API key provided: "+r.Header.Get("Authorization"))
		return
	}
	// Read to the end, or the end of the client would go unnoticed.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 256<<20))
	var q asked
	if err == nil {
		q, err = d.parse(body)
	}
	if err != nil {
		refuse(http.StatusBadRequest, "the request is not valid: "+err.Error())
		return
	}
	if m := s.config.Model; m != "" && q.model != m {
		refuse(http.StatusNotFound, fmt.Sprintf("the model %q does not exist", q.model))
		return
	}
	fault := s.receive(q.texts)
	if !s.admit(w, d, tokens(q.texts...)) {
		refuse(http.StatusTooManyRequests, "rate limit exceeded")
		return
	}
	if fault.Kind != Drip && !wait(r, fault.Delay) {
		return
	}
	if limit := s.config.MaxBatch; limit > 0 && len(q.texts) > limit {
		refuse(http.StatusUnprocessableEntity, fmt.Sprintf("batch of %d is larger than %d", len(q.texts), limit))
		return
	}
	if limit := s.config.MaxTokens; limit > 0 && tokens(q.texts...) > limit {
		refuse(http.StatusBadRequest, fmt.Sprintf("the batch has more than %d tokens", limit))
		return
	}
	for i, text := range q.texts {
		if limit := s.config.MaxTextBytes; text == "" || limit > 0 && len(text) > limit {
			refuse(http.StatusBadRequest, fmt.Sprintf("input %d is empty or longer than the model's context", i))
			return
		}
	}
	if q.dimensions < 0 || q.dimensions > s.config.Dimensions {
		refuse(http.StatusBadRequest, fmt.Sprintf("the model has no %d dimensions", q.dimensions))
		return
	}
	s.respond(w, r, q, d, fault)
}

func (s *Server) respond(w http.ResponseWriter, r *http.Request, q asked, d dialect, f Fault) {
	switch f.Kind {
	case Status:
		status := f.Status
		if status == 0 {
			status = http.StatusInternalServerError
		}
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
		}
		refuse(w, d, status, f.Message)
	case RedirectAway:
		http.Redirect(w, r, f.Location, http.StatusTemporaryRedirect)
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
	case Bomb:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb())
	default:
		s.vectorsFor(w, r, q, d, f)
	}
}

// bomb is 64 MB of blanks, packed.
var bomb = sync.OnceValue(func() []byte {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(bytes.Repeat([]byte(" "), 64<<20))
	_ = w.Close()
	return packed.Bytes()
})

// vectorsFor answers with vectors, spoilt or broken off as f says.
func (s *Server) vectorsFor(w http.ResponseWriter, r *http.Request, q asked, d dialect, f Fault) {
	items, good, err := s.items(r, q, d, f)
	if err != nil {
		return // the client has gone
	}
	used := int64(tokens(q.texts...))
	switch f.Kind {
	case NoUsage:
		used = 0
	case AbsurdUsage:
		used = math.MaxInt32
	}
	body, err := json.Marshal(d.answer(q, items, used))
	if err != nil {
		panic(err) // items are plain values
	}
	w.Header().Set("Content-Type", "application/json")
	if f.Kind == WrongType {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
	}
	switch f.Kind {
	case Malformed:
		body = body[:len(body)/2]
	case LiteralNaN:
		body = bytes.Replace(body, []byte(d.opening), []byte(d.opening+"NaN,"), 1)
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
		s.count(good, used)
		return
	}
	// Counted first: a client that has its answer must find it counted.
	if f.Kind != Malformed && f.Kind != LiteralNaN && f.Kind != WrongType {
		s.count(good, used)
	}
	_, _ = w.Write(body)
}

// items returns the response's vectors and the texts whose vector is good.
func (s *Server) items(r *http.Request, q asked, d dialect, f Fault) (items []item, good []string, err error) {
	texts := q.texts
	if q.query {
		texts = make([]string, len(q.texts))
		for i, text := range q.texts {
			texts[i] = asQuestion(text)
		}
	}
	vectors, err := s.vectors.Embed(r.Context(), texts)
	if err != nil {
		return nil, nil, err
	}
	perText := slices.Contains([]Kind{NullComponent, NullVector, Overflow, ZeroVector, Infinite}, f.Kind)
	for i, text := range q.texts {
		spoilt := perText && f.matches(text) || f.Kind == WrongDimensions || f.Kind == Unscaled ||
			f.Kind == OneWrong && i == len(q.texts)-1
		v := shorten(vectors[i], q.dimensions)
		vector := encode(v, q.base64)
		if spoilt {
			vector = spoil(v, f.Kind)
		}
		if f.sound() || perText && !spoilt {
			good = append(good, text)
		}
		items = append(items, item{Object: "embedding", Index: &i, Embedding: vector})
	}
	if !d.indexed && (f.Kind == Unordered || f.Kind == NoIndexes) {
		return items, good, nil // it has no other way to say it
	}
	return rearrange(items, f.Kind), good, nil
}

// shorten cuts a vector as models do that can: the first components, at length 1.
func shorten(v []float32, dimensions int) []float32 {
	if dimensions == 0 || dimensions == len(v) {
		return v
	}
	var squares float64
	for _, x := range v[:dimensions] {
		squares += float64(x) * float64(x)
	}
	short := make([]float32, dimensions)
	for i := range short {
		short[i] = float32(float64(v[i]) / math.Sqrt(squares))
	}
	return short
}

func encode(v []float32, inBase64 bool) any {
	if !inBase64 {
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
	case Infinite:
		v = slices.Clone(v)
		v[len(v)/2] = float32(math.Inf(-1))
		return encode(v, true)
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

func (s *Server) count(texts []string, tokens int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens += tokens
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

func refuse(w http.ResponseWriter, d dialect, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(d.refusal(message))
}
