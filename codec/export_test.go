package codec

// SetSizes makes a Masker, and a Parser's Flow with it, look at less at a time.
func (m *Masker) SetSizes(value, window, margin int) { m.sizes = sizes{value, window, margin} }
