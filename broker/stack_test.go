//go:build !race && amd64

package broker

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/broker/stream"
)

// stacksPeer is set in the process that TestStacks looks at.
const stacksPeer = "BROKER_TEST_STACKS"

// TestStacks checks how deep the stacks of a session are that waits, and that they are
// two. Go halves a stack, when it collects, of which less than a quarter is in use and 800
// bytes more: these become 8 and 4 KiB again, whatever a frame has taken.
func TestStacks(t *testing.T) {
	if os.Getenv(stacksPeer) != "" {
		waitAndCrash(t)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestStacks$")
	cmd.Env = append(os.Environ(), stacksPeer+"=1", "TMPDIR="+t.TempDir())
	out, _ := cmd.CombinedOutput() // a crash says where each stack is, and nothing else does
	const spare = 800
	frame := regexp.MustCompile(`fp=0x([0-9a-f]+) sp=0x([0-9a-f]+)`)
	found := 0
	for _, trace := range strings.Split(string(out), "\n\ngoroutine ") {
		if !strings.Contains(trace, "broker.(*session)") {
			continue
		}
		found++
		want := 4 << 10
		if strings.Contains(trace, "pumpC2S") {
			want = 8 << 10
		}
		frames := frame.FindAllStringSubmatch(trace, -1)
		if len(frames) == 0 {
			t.Fatalf("no frames in\n%s", trace)
		}
		deepest, _ := strconv.ParseUint(frames[0][2], 16, 64)
		first, _ := strconv.ParseUint(frames[len(frames)-1][1], 16, 64)
		if depth := int(first - deepest); depth+spare >= 2*want/4 {
			t.Errorf("%d bytes are in use, want less than %d: a stack of %d would be kept\n%s", depth, 2*want/4-spare, 2*want, trace)
		}
	}
	if found != 2 {
		t.Errorf("a session that waits has %d goroutines, want 2\n%s", found, out)
	}
}

// waitAndCrash has a session wait in both directions, and crashes.
func waitAndCrash(t *testing.T) {
	h, _ := newHarness(t, Limits{}, allowAll)
	c := h.dial(t, "ada", "far", stream.Dial)
	io.WriteString(c, call(1))
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // it has nothing more to do
	debug.SetTraceback("system")
	panic("where is everybody")
}
