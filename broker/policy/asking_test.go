package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/identity"
)

// asked are ada's terms of a rule that needs an approval and says this of asking.
func asked(t testing.TB, duration time.Duration, a Asking) *Terms {
	t.Helper()
	if a.Approvers.Users == nil && a.Auto == "" {
		a.Approvers.Users = []string{"grace"}
	}
	return compile(t, Rule{Users: []string{"*"}, Servers: []string{"*"}, Access: Approval, Duration: duration, Asking: a}).
		Decide(identity.Identity{Subject: "ada", Groups: []string{"analysts", "oncall"}}, "bigquery")
}

func TestApprovers(t *testing.T) {
	a := Approvers{Users: []string{"grace"}, Groups: []string{"leads"}}
	tests := []struct {
		name, subject, groups string
		want                  bool
	}{
		{"user", "grace", "", true},
		{"member", "kate", "x leads", true},
		{"other group", "kate", "lead", false},
		{"group's name as a subject", "leads", "", false},
		{"user's name as a group", "kate", "grace", false},
	}
	for _, tt := range tests {
		got := a.Include(identity.Identity{Subject: tt.subject, Groups: strings.Fields(tt.groups)})
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestCheckReason(t *testing.T) {
	tests := []struct{ name, rule, reason, want string }{
		{"none needed", "", "", ""},
		{"required", "required", " \t", "required"},
		{"given", "required", "look at the bill", ""},
		{"pattern", "[A-Z]+-[0-9]+.*", "OPS-12 the bill", ""},
		{"pattern in the middle", "[A-Z]+-[0-9]+", "see OPS-12", "must match"},
		{"pattern of alternatives is anchored as a whole", "a|b", "ax", "must match"},
		{"newline", "required", "a\nb", "control"},
		{"long", "", strings.Repeat("x", maxReason+1), "long"},
	}
	for _, tt := range tests {
		got := ""
		if err := asked(t, 0, Asking{Reason: tt.rule}).CheckReason(tt.reason); err != nil {
			got = err.Error()
		}
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestLasts(t *testing.T) {
	tests := []struct {
		name                  string
		duration, most, asked time.Duration
		want                  time.Duration // -1: refused
	}{
		{"defaults", 0, 0, 0, time.Hour},
		{"the rule's", 2 * time.Hour, 8 * time.Hour, 0, 2 * time.Hour},
		{"asked", 2 * time.Hour, 8 * time.Hour, 3 * time.Hour, 3 * time.Hour},
		{"asked too much", 2 * time.Hour, 8 * time.Hour, 9 * time.Hour, -1},
		{"the rule's is the most", 2 * time.Hour, 0, 3 * time.Hour, -1},
		{"a short most", 0, 10 * time.Minute, 0, 10 * time.Minute},
		{"negative", 0, 0, -time.Hour, -1},
	}
	for _, tt := range tests {
		got, err := asked(t, tt.duration, Asking{MaxDuration: tt.most}).Lasts(tt.asked)
		if err != nil {
			got = -1
		}
		if got != tt.want {
			t.Errorf("%s: %v (%v), want %v", tt.name, got, err, tt.want)
		}
	}
}

func TestAuto(t *testing.T) {
	monday := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	tests := []struct {
		name, auto string
		want       bool
	}{
		{"group", `"oncall" in groups`, true},
		{"other group", `"admins" in groups`, false},
		{"working hours", `now.getDayOfWeek() in [1, 2, 3, 4, 5] && now.getHours("Europe/Berlin") >= 9 && now.getHours("Europe/Berlin") < 18`, true},
		{"network", `cidr("10.0.0.0/8").containsIP(source)`, true},
		{"other network", `cidr("192.168.0.0/16").containsIP(source)`, false},
		{"a short time", `duration <= duration("30m")`, false},
		{"what fails to evaluate is no yes", `groups[9] == "x" || cidr(reason).containsIP(source)`, false},
	}
	for _, tt := range tests {
		got := asked(t, 0, Asking{Auto: tt.auto}).Auto(Asked{
			Reason: "r", Duration: time.Hour, Source: netip.MustParseAddr("::ffff:10.1.2.3"), Now: monday,
		})
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if asked(t, 0, Asking{}).Auto(Asked{Now: monday}) {
		t.Error("a rule without auto approves by itself")
	}
}
