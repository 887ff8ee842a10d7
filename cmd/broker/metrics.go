package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what Prometheus reads of a broker, looked up when it asks.
type metrics struct{ in *installation }

var (
	metricRunning = prometheus.NewDesc("broker_sessions", "Sessions that run.", nil, nil)
	metricReady   = prometheus.NewDesc("broker_ready", "1 if the broker takes sessions, 0 if not.", nil, nil)
	metricRecords = prometheus.NewDesc("broker_log_sessions", "Sessions on record.", nil, nil)
	metricPending = prometheus.NewDesc("broker_log_pending_sessions", "Sessions that have ended and are not compressed yet.", nil, nil)
	metricBytes   = prometheus.NewDesc("broker_log_bytes", "What the log takes of its disk.", []string{"part"}, nil)
	metricFree    = prometheus.NewDesc("broker_log_free_bytes", "What is free on the log's disk.", nil, nil)
	metricAway    = prometheus.NewDesc("broker_log_archived_sessions", "Sessions on record whose frames are in an archive.", nil, nil)
	metricFailing = prometheus.NewDesc("broker_archive_failing", "1 if the archive could not be used when it was tried last, 0 if not.", nil, nil)
	metricUndone  = prometheus.NewDesc("broker_archive_undeleted_objects", "Objects of deleted sessions that are in an archive still.", nil, nil)
	metricWhen    = prometheus.NewDesc("broker_log_collected_timestamp_seconds", "When space of deleted blocks was last freed; 0: not since the broker has started.", nil, nil)
	metricKept    = prometheus.NewDesc("broker_log_kept_free_bytes", "What must stay free on it: limits.disk_free.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m metrics) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, to) }

// Collect implements prometheus.Collector.
func (m metrics) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(metricRunning, float64(m.in.broker.Sessions()))
	ready := 0.0
	if m.in.broker.Health() == nil {
		ready = 1
	}
	gauge(metricReady, ready)
	d, err := m.in.recorder.Disk()
	if err != nil {
		to <- prometheus.NewInvalidMetric(metricBytes, err)
		return
	}
	gauge(metricRecords, float64(d.Sessions))
	gauge(metricPending, float64(d.Pending))
	gauge(metricBytes, float64(d.Values), "values")
	gauge(metricBytes, float64(d.Tables), "tables")
	gauge(metricBytes, float64(d.Recent), "recent")
	gauge(metricBytes, float64(d.Other), "other")
	gauge(metricFree, float64(d.Free))
	when := 0.0
	if c := d.Collected; !c.Time.IsZero() {
		when = float64(c.Time.Unix())
	}
	gauge(metricWhen, when)
	gauge(metricKept, float64(m.in.recorder.Reserved()))
	a, err := m.in.recorder.Archiving(context.Background())
	if err != nil {
		to <- prometheus.NewInvalidMetric(metricAway, err)
		return
	}
	failing := 0.0
	if a.Failing != nil {
		failing = 1
	}
	gauge(metricAway, float64(a.Sessions))
	gauge(metricFailing, failing)
	gauge(metricUndone, float64(a.Undeleted))
}

// serveMetrics answers Prometheus on a listener, until ctx is done.
func (in *installation) serveMetrics(ctx context.Context, ln net.Listener) error {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{in}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
