package codec

// Where hints say that nothing is to be found, members need not be looked at one
// by one. Names like those of the object before, and short values, are gone over as
// the parser reads them.

// skim goes from the member at i, the kth of its object, over members that are not
// near a hint, and returns where the first is that has to be looked at, and which
// it is; or where the object's bracket is.
func (m *Masker) skim(i int, t *template, k int) (at, n int) {
	h := &m.hints
	if !inBlocks || !h.known || m.fields != nil {
		return i, k
	}
	for m.b[i] == '"' {
		limit := len(m.b)
		if h.reach(i); h.next != noHint {
			limit = h.next - nearBy - 1
		}
		if limit-i < shortMember {
			break
		}
		at, n, s := membersBlocks(m.b, i, t, k, limit, false)
		switch s {
		case atName:
			if at = skipSpace(m.b, at); at == i {
				return at, n
			}
			i, k = at, n
		case atValue:
			name := at - t.names[n-1].n
			if m.b[at] != '"' {
				return name, n - 1
			}
			end, escaped := stringEnd(m.b, at)
			if escaped == others || !h.none(name, end) {
				return name, n - 1
			}
			i, k = m.behind(end), n
		case behindValue:
			i, k = m.behind(at), n
		case behindObject:
			return at - 1, n
		}
	}
	return i, k
}

// behind returns where the next member or element begins, or where the bracket is, when
// a value ends at i.
func (m *Masker) behind(i int) int {
	if i = skipSpace(m.b, i); m.b[i] == ',' {
		i = skipSpace(m.b, i+1)
	}
	return i
}

// shortMember is how long members are that are worth a try.
const shortMember = 10

// learn makes text, from a name to its value, the kth of the template. name has no
// escapes.
func (t *template) learn(text []byte, k int, name []byte) {
	if k >= maxTemplate || len(text) > len(t.names[k].text) || k > t.n {
		return
	}
	switch string(name) {
	case "data", "blob", "type", "mimeType":
		t.names[k] = templateName{} // no text begins like it
	default:
		if known := &t.names[k]; k == t.n || string(known.text[:known.n]) != string(text) {
			t.names[k].set(text, len(name))
		}
	}
	t.n = max(t.n, k+1)
}
