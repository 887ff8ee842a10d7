package identity

import (
	"errors"
	"testing"
	"time"
)

func TestSealer(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	type statement struct{ A string }
	seal := func(s *Sealer, purpose string, until time.Time) string {
		text, err := s.Seal(purpose, statement{"x"}, until)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	again, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenSealer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(time.Minute)
	good := seal(s, "p", soon)
	last := byte('A')
	if good[len(good)-3] == last {
		last = 'B'
	}
	tests := []struct {
		name, text string
		want       error
	}{
		{"good", good, nil},
		{"another purpose", seal(s, "q", soon), ErrSeal},
		{"expired", seal(s, "p", time.Now().Add(-time.Second)), ErrSeal},
		{"another key", seal(other, "p", soon), ErrSeal},
		{"altered", good[:len(good)-3] + string(last) + good[len(good)-2:], ErrSeal},
		{"cut", good[:10], ErrSeal},
		{"empty", "", ErrSeal},
		{"not base64", "*", ErrSeal},
	}
	for _, tt := range tests {
		var got statement
		if err := again.Open("p", tt.text, &got); !errors.Is(err, tt.want) || (err == nil) != (got.A == "x") {
			t.Errorf("%s: %v, %+v, want %v", tt.name, err, got, tt.want)
		}
	}
}
