package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestMetrics reads what Prometheus would of a broker with a session.
func TestMetrics(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	b := startBroker(t, t.TempDir(), "metrics: "+addr+"\nservers: {near: {stdio: [cat]}}\n"+everything)
	c := b.dial(t, "near", dials["tls"])
	io.WriteString(c, request(1))
	nextLine(t, bufio.NewReader(c))
	r, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", r.Status, err)
	}
	for _, want := range []string{
		`broker_sessions 1`, `broker_ready 1`, `broker_log_sessions 1`, `broker_log_pending_sessions 0`,
		`broker_log_bytes\{part="recent"\} [1-9].*`, `broker_log_bytes\{part="values"\} [0-9].*`, `broker_log_free_bytes [1-9].*`, `broker_log_kept_free_bytes 2\.68435456e\+08`,
		`broker_log_archived_sessions 0`, `broker_archive_failing 0`, `broker_archive_undeleted_objects 0`,
		`broker_log_collected_timestamp_seconds 0`,
		`go_memstats_mallocs_total [1-9].*`, `process_cpu_seconds_total [0-9].*`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).Match(body) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if strings.Contains(string(body), "near") {
		t.Error("servers are named")
	}
}
