package server

import (
	"container/list"
	"crypto/rand"
	"fmt"
	"sync"
	"time"
)

const (
	// tokenLife is how long a client may take to come for its stream.
	tokenLife = time.Minute
	// maxTokens bounds the requests that wait for their clients.
	maxTokens = 1000
)

// tokens are the requests that wait for a client. A token is good once, for a
// while; whoever has it is the client.
type tokens struct {
	now func() time.Time

	mu      sync.Mutex
	waiting map[string]*list.Element // guarded by mu
	oldest  *list.List               // of *waitingRequest, guarded by mu
}

type waitingRequest struct {
	token   string
	request any
	expires time.Time
}

func newTokens(now func() time.Time) *tokens {
	return &tokens{now: now, waiting: map[string]*list.Element{}, oldest: list.New()}
}

// put keeps a request and returns its token: 128 bits that cannot be guessed.
func (t *tokens) put(request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for e := t.oldest.Front(); e != nil && e.Value.(*waitingRequest).expires.Before(now); e = t.oldest.Front() {
		t.drop(e)
	}
	if t.oldest.Len() >= maxTokens {
		return "", fmt.Errorf("%d requests wait for clients that did not come within %v: %w", maxTokens, tokenLife, errTooMany)
	}
	w := &waitingRequest{token: rand.Text(), request: request, expires: now.Add(tokenLife)}
	t.waiting[w.token] = t.oldest.PushBack(w)
	return w.token, nil
}

// take returns the token's request, once; nil if there is none.
func (t *tokens) take(token string) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.waiting[token]
	if e == nil {
		return nil
	}
	w := t.drop(e)
	if w.expires.Before(t.now()) {
		return nil
	}
	return w.request
}

func (t *tokens) drop(e *list.Element) *waitingRequest {
	w := t.oldest.Remove(e).(*waitingRequest)
	delete(t.waiting, w.token)
	return w
}
