package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/grant"
	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
)

// quickRace keeps the processes of a test that the race detector is in from
// sleeping for a second at their end.
const quickRace = "atexit_sleep_ms=0"

// commands are the programs that tests run as processes of their own.
var commands = map[string]func(){"broker": main, "sdk-server": sdkServer}

func TestMain(m *testing.M) {
	os.Setenv("GORACE", quickRace)
	testscript.Main(m, commands)
}

// TestScript runs the stories in testdata/script, one file each.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", quickRace)
			e.Setenv("PORT", strconv.Itoa(freePort(t)))
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("no condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"appears": appears, "fails": fails, "chown": chown, "env-subst": envSubst,
			"append": appendFile, "session": session, "until-in": untilIn,
			"request": idOf("REQUEST"), "grant": idOf("GRANT"), "kill-hard": killHard, "audit-whole": auditWhole, "until-grep": untilGrep, "until-up": untilUp,
			"age-key": ageKey, "hides": hides, "file-in": fileIn, "status": status,
		},
	})
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// appears waits until a file is there: appears data/broker.sock, or, with a ! in front,
// until it is not.
func appears(ts *testscript.TestScript, gone bool, args []string) {
	path := ts.MkAbs(args[0])
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); (err != nil) == gone {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: it is never so that it is gone: %v", args[0], gone)
		}
	}
}

// fails runs a command and checks its exit status and the first line that it
// writes to stderr: fails 1 want broker …
func fails(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(args[2], args[3:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"))
	var stderr, stdout []byte
	out, _ := os.Create(filepath.Join(ts.Getenv("WORK"), ".fails"))
	defer out.Close()
	cmd.Stderr = out
	stdout, _ = cmd.Output()
	stderr, _ = os.ReadFile(out.Name())
	ts.Logf("[stderr]\n%s", stderr)
	if got := cmd.ProcessState.ExitCode(); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
	if len(stdout) > 0 {
		ts.Fatalf("stdout is %q, want nothing", stdout)
	}
	want := ts.ReadFile(args[1])
	if string(stderr) != want {
		ts.Fatalf("stderr is\n%swant\n%s", stderr, want)
	}
}

// status runs a command, which must end with that exit status: status N COMMAND…
func status(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || fmt.Sprint(exit.ExitCode()) != args[0] {
		ts.Fatalf("it ends with %v, want exit status %s", err, args[0])
	}
}

func chown(ts *testscript.TestScript, _ bool, args []string) {
	uid, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(os.Chown(ts.MkAbs(args[1]), uid, uid))
}

// envSubst replaces $PORT and $WORK in a file of the archive.
func envSubst(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.NewReplacer("$PORT", ts.Getenv("PORT"), "$WORK", ts.Getenv("WORK")).Replace(ts.ReadFile(args[0]))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func appendFile(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0]) + ts.ReadFile(args[1])
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// session sets SESSION to the id of the first or the last session in what
// sessions --json has printed, newest first.
func session(ts *testscript.TestScript, _ bool, args []string) {
	lines := strings.Split(strings.TrimSpace(ts.ReadFile(args[1])), "\n")
	line := lines[0]
	if args[0] == "first" {
		line = lines[len(lines)-1]
	}
	var s struct{ ID string }
	ts.Check(json.Unmarshal([]byte(line), &s))
	ts.Setenv("SESSION", s.ID)
}

// idOf sets a variable to the first id in a file of JSON.
func idOf(variable string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		m := regexp.MustCompile(`"id":"([^"]+)"`).FindStringSubmatch(ts.ReadFile(args[0]))
		if m == nil {
			ts.Fatalf("no id in %s", args[0])
		}
		ts.Setenv(variable, m[1])
	}
}

// killHard kills a command in the background, as kill -9 does.
func killHard(ts *testscript.TestScript, _ bool, args []string) {
	for _, cmd := range ts.BackgroundCmds() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			ts.Check(cmd.Process.Kill())
			time.Sleep(100 * time.Millisecond) // until the kernel has let go of its port
		}
	}
}

// auditWhole checks that a file of events has each of them, in order: audit-whole FILE
func auditWhole(ts *testscript.TestScript, _ bool, args []string) {
	seen := uint64(0)
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var e grant.Event
		ts.Check(json.Unmarshal([]byte(line), &e))
		if e.Seq > seen+1 {
			ts.Fatalf("event %d follows event %d", e.Seq, seen)
		}
		seen = max(seen, e.Seq)
	}
	if seen == 0 {
		ts.Fatalf("%s has no events", args[0])
	}
}

// untilGrep waits until a file holds what matches: until-grep FILE PATTERN
func untilGrep(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[1])
	for deadline := time.Now().Add(20 * time.Second); !want.MatchString(ts.ReadFile(args[0])); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s never holds %s", args[0], want)
		}
	}
}

// ageKey makes an identity of age, and sets a variable to its recipient: age-key FILE VAR
func ageKey(ts *testscript.TestScript, _ bool, args []string) {
	id, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(id.String()+"\n"), 0o600))
	ts.Setenv(args[1], id.Recipient().String())
}

// fileIn sets a variable to the name of the only file in a folder: file-in DIR VAR
func fileIn(ts *testscript.TestScript, _ bool, args []string) {
	files, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(files) != 1 {
		ts.Fatalf("%s has %d files", args[0], len(files))
	}
	ts.Setenv(args[1], files[0].Name())
}

// hides fails if a file of a folder holds a text: hides DIR TEXT
func hides(ts *testscript.TestScript, _ bool, args []string) {
	files := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(args[1])) {
			ts.Fatalf("%s holds %q", path, args[1])
		}
		return err
	}))
	if files == 0 {
		ts.Fatalf("%s has no files", args[0])
	}
}

// untilUp waits until the broker at an address answers: until-up ADDR IDENTITY
func untilUp(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command("broker", "whoami", "--broker", args[0], "--identity", args[1])
		cmd.Dir = ts.MkAbs(".")
		out, err := cmd.CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the broker does not come up: %s", out)
		}
	}
}

// untilIn runs a command with a file as its stdin until its stdout matches.
func untilIn(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[1])
	var out []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command(args[2], args[3:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Stdin = strings.NewReader(ts.ReadFile(args[0]))
		if out, _ = cmd.Output(); want.Match(out) {
			return
		}
	}
	ts.Fatalf("%q never matches %s", out, want)
}
