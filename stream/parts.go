package stream

// An answer is one that is written in parts.
type answer struct {
	reply *reply   // nil: nobody waits for it
	by    *carrier // that has had its beginning; nil: none has
	pos   int64
	cut   bool
}

// TakesParts reports whether the answer to the request with that raw id may be written in
// parts. One to a request that goes by another id may not: it is changed as a whole.
func (c *HTTPConn) TakesParts(id []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.replies[rawKey(id)]
	return r != nil && r.alias == nil
}

// Flow says that what is written next, up to a newline, is the answer to the request
// with that raw id, in parts.
func (c *HTTPConn) Flow(id []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.useful, c.hint = true, nil
	a := &answer{reply: c.replies[rawKey(id)], pos: c.sent}
	c.sent++
	if r := a.reply; r != nil && r.by != nil && r.by.live {
		a.by = r.by
	}
	c.answer = a
}

// Cut says that the answer which is written in parts, if one is, ends with the next
// newline and is not whole. Another answer to the same request says why.
func (c *HTTPConn) Cut() {
	if c.answer != nil {
		c.answer.cut = true
	}
}

// part sends a part of an answer on. It is false if the conn is closed.
func (c *HTTPConn) part(b []byte, last bool) bool {
	a := c.answer
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return false
	}
	if a.by != nil && len(b) > 0 {
		a.by.part(a.reply, b, a.pos)
	}
	if !last {
		return true
	}
	c.answer = nil
	if a.reply != nil && !a.cut {
		c.answeredInParts(a)
	}
	if a.by != nil {
		a.by.finish(!a.cut)
	}
	return true
}

// answeredInParts notes that an answer is whole.
func (c *HTTPConn) answeredInParts(a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := a.reply
	if r.over { // its client has cancelled the request
		return
	}
	delete(c.replies, rawKey(r.id))
	r.came(a.pos, true)
	if a.by != nil {
		r.handed = len(r.events)
	}
	if other := r.by; other != nil && other != a.by && other.live { // the client has come back in the middle of it
		other.live = false
		other.leave(a.pos - 1)
	}
}
