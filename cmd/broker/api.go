package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"example.com/broker/broker/signin"
)

// An apiClient calls the broker's API as the user.
type apiClient struct {
	base string
	http *http.Client
}

// api returns a client of the broker's API.
func (f *clientFlags) api() (*apiClient, error) {
	c, err := f.tls("")
	if err != nil {
		return nil, err
	}
	return newAPI(f.broker, c), nil
}

func newAPI(broker string, c *tls.Config) *apiClient {
	c.NextProtos = []string{"http/1.1"}
	return &apiClient{"https://" + broker, &http.Client{
		Transport: &http.Transport{TLSClientConfig: c, TLSHandshakeTimeout: dialTime},
		Timeout:   time.Minute,
	}}
}

// An apiError is what the broker answers instead of a result.
type apiError struct {
	status int
	signin.Failure
}

func (e *apiError) Error() string { return e.Failure.Error }

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 16 << 20

// call makes a request; body is sent as JSON unless it is nil, and the answer
// read into result.
func (c *apiClient) call(ctx context.Context, method, path string, body, result any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, send)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var wrong *tls.CertificateVerificationError
		if errors.As(err, &wrong) {
			return fmt.Errorf("connect to %s: %w", c.base, wrong)
		}
		return err
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		failure := &apiError{status: resp.StatusCode}
		if json.NewDecoder(answer).Decode(&failure.Failure) != nil || failure.Failure.Error == "" {
			return fmt.Errorf("broker %s answers %s", c.base, resp.Status)
		}
		return failure
	}
	if err := json.NewDecoder(answer).Decode(result); err != nil {
		return fmt.Errorf("broker %s answers what is not expected: %w", c.base, err)
	}
	return nil
}
