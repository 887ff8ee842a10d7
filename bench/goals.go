package main

import "example.com/broker/bench/report"

// goals are what the broker is to reach, with policy, all detectors and recording.
var goals = []report.Goal{
	goal("64 connections, calls/s", "tls-64", report.Calls, targetChain, 1.3),
	against("64 connections, calls/s, HTTP of mcpproxyd", "tls-64", report.Calls, report.Target{Name: targetMCPProxy, Work: "http1-64"}, 5),
	goal("64 connections, p99", "tls-64", report.P99, targetChain, 1),
	against("64 connections, p99, HTTP of mcpproxyd", "tls-64", report.P99, report.Target{Name: targetMCPProxy, Work: "http1-64"}, 0.25),
	goal("one connection, p50", "tls-1", report.P50, targetChain, 1.1),
	goal("HTTP, 64 connections, calls/s", "http1-64", report.Calls, targetMCPProxy, 3),
	goal("HTTP, 64 connections, calls/s", "http1-64", report.Calls, targetSDK, 2),
	goal("HTTP, 64 connections, p99", "http1-64", report.P99, targetMCPProxy, 1.0/3),
	goal("HTTP, 64 connections, p99", "http1-64", report.P99, targetSDK, 1.0/3),
	goal("pipelined 16×32, calls/s", "tls-pipelined", report.Calls, targetChain, 1),
	goal("64 KB results, MB/s", "tls-64k", report.Bytes, targetChain, 1),
	goal("10 MB results, first byte", "tls-10m", report.First, targetDirect, 2),
	goal("QUIC, 64 connections, calls/s", "quic-64", report.Calls, targetDirect, 0.8),
	goal("new sessions/s", "new-sessions", report.Calls, targetDirect, 0.7),
	against("idle session, memory", "idle", report.Memory, report.Target{}, 40),
	against("idle sessions, all answer when woken", "idle", report.Wake, report.Target{}, 1),
	against("63 interactive beside a bulk session, p99", "beside-bulk", report.P99, report.Target{Name: targetBroker, Work: "alone"}, 2),
	goal("recording on against off, calls/s", "tls-64", report.Calls, targetUnrecorded, 0.85),
	against("allocations a frame", "tls-64", report.Objects, report.Target{}, 2),
}

func goal(name, work string, metric report.Metric, than string, factor float64) report.Goal {
	return against(name, work, metric, report.Target{Name: than}, factor)
}

func against(name, work string, metric report.Metric, than report.Target, factor float64) report.Goal {
	return report.Goal{Name: name, Work: work, Target: targetBroker, Metric: metric, Than: than, Factor: factor}
}

// sweeps are the plots by connections.
var sweeps = []report.Sweep{
	{Name: "calls of 200 B over TLS", Metric: report.Calls, Axis: "connections", Works: []string{"tls-1", "tls-8", "tls-64", "tls-256"}, At: []float64{1, 8, 64, 256}},
	{Name: "calls of 200 B over TLS", Metric: report.CPU, Axis: "connections", Works: []string{"tls-1", "tls-8", "tls-64", "tls-256"}, At: []float64{1, 8, 64, 256}},
	{Name: "calls of 200 B over TLS", Metric: report.P99, Axis: "connections", Works: []string{"tls-1", "tls-8", "tls-64", "tls-256"}, At: []float64{1, 8, 64, 256}},
}
