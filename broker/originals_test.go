package broker

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// sent is what the sender of a direction has sent in the newest session, as its
// originals have it; what the broker made is not.
func (h *harness) sent(t *testing.T, d codec.Direction) string {
	t.Helper()
	src := recorder.OpenOriginals(h.log, h.auditor)
	for s := range h.log.Sessions(t.Context()) {
		var out bytes.Buffer
		err := recorder.Replay(t.Context(), &out, src, s.ID, recorder.View{Want: func(f recorder.Frame) bool {
			return f.Direction == d && f.Verdict != recorder.Answered
		}})
		if err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	t.Fatal("nothing is on record")
	return ""
}

// TestOriginals checks that what is masked, edited or blocked is on record as it
// was sent, for an auditor, whatever way it takes through the broker.
func TestOriginals(t *testing.T) {
	rule := strict(policy.Enforce)
	rule.Masking.Requests = policy.RequestsMask
	h, stop := newHarness(t, Limits{}, rule)
	defer stop()
	c := h.dial(t, "ada", "cat", stream.Dial)
	defer c.Close()
	in := bufio.NewReader(c)
	var fromClient, delivered string
	exchange := func(out, want string) {
		t.Helper()
		fromClient += out
		io.WriteString(c, out)
		line, err := in.ReadString('\n')
		if err != nil || !strings.Contains(line, want) || strings.Contains(line, "@") {
			t.Fatalf("%.90q is answered by %q, %v; want %q", out, line, err, want)
		}
		delivered += line
	}
	mail := func(tool string, id int) string {
		return fmt.Sprintf(`{"jsonrpc" : "2.0","id":%d,"method":"tools\/call","params":{"name":%q,"arguments":{"to":"\u0061da@example.com"}}}`+"\n", id, tool)
	}
	exchange(mail("list", 1), "[masked:email]") // masked
	exchange(mail("drop", 2), `"code":403`)     // refused
	exchange(mail("ask", 3), `"code":428`)      // held, and refused
	exchange(tool("list", 4), `"id":4`)         // as it is
	exchange(mail("list", 1), `"code":-32600`)  // its id is in flight
	exchange(`{"jsonrpc":"2.0","method":"notifications/x"}`+"\n", "notifications/x")
	h.sessionsEnd(errGrantRevoked)
	waitUntil(t, "the session is gone", func() bool { return h.Sessions() == 0 })
	if got := h.sent(t, codec.C2S); got != fromClient {
		t.Errorf("sent was\n%s\nthe originals are\n%s", fromClient, got)
	}
	if got := h.replay(t, codec.S2C); !strings.HasPrefix(got, delivered) {
		t.Errorf("delivered was\n%s\non record is\n%s", delivered, got)
	}
}

// TestOriginalsServer does the same with what a server sends.
func TestOriginalsServer(t *testing.T) {
	rule := masksMail()
	rule.Calls = []policy.CallRule{{Deny: `tool == "drop"`, Reason: "no"}}
	f := startFlow(t, Limits{}, rule, tool("a", 1), strings.Replace(tool("b", 2), "tools/call", "tools/list", 1))
	mails := strings.Repeat(" ada@example.com, and \\u0062ob@example.com;", 30_000)
	long := beginning + mails + `"}]}}` + "\n"
	sent := []string{
		`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"ada@example.com"}}` + "\n",
		long,
		`{"jsonrpc":"2.0", "id":2,"result":{"tools":[{"name":"drop"},{"name":"list"}]}}` + "\n",
		`{"jsonrpc":"2.0","id":9,"result":"nobody asked ada@example.com"}` + "\n",
		`{"jsonrpc":"2.0","id":ada@example.com}` + "\n",
	}
	f.answer(sent...)
	f.client.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(f.in)
	if err != nil || bytes.Contains(got, []byte("@")) || !bytes.Contains(got, []byte("[masked:email]")) || bytes.Contains(got, []byte("drop")) {
		t.Fatalf("the client got %.300q, %v", got, err)
	}
	waitUntil(t, "the session is gone", func() bool { return f.Sessions() == 0 })
	if originals := f.sent(t, codec.S2C); originals != strings.Join(sent, "") {
		at := 0
		for want := strings.Join(sent, ""); at < min(len(want), len(originals)) && want[at] == originals[at]; at++ {
		}
		t.Errorf("the originals are %d bytes, %d were sent; from byte %d on: %.200q", len(originals), len(strings.Join(sent, "")), at, originals[at:])
	}
	if on := f.replay(t, codec.S2C); strings.Contains(on, "@") {
		t.Error("the record has what was masked")
	}
}
