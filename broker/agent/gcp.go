package agent

import (
	"context"
	"fmt"
	"net/url"

	"cloud.google.com/go/compute/metadata"
)

// InstanceToken asks the metadata server of Google Cloud for this instance's
// identity token, with what Google says of the instance in it. It is what
// [Link]'s Attest is on GCP.
func InstanceToken(ctx context.Context, audience string) (string, error) {
	q := url.Values{"audience": {audience}, "format": {"full"}}
	token, err := metadata.NewClient(nil).GetWithContext(ctx, "instance/service-accounts/default/identity?"+q.Encode())
	if err != nil {
		return "", fmt.Errorf("metadata server: %w", err)
	}
	return token, nil
}
