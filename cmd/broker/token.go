package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func token() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "create tokens that agents join with",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(tokenCreate())
	return cmd
}

func tokenCreate() *cobra.Command {
	var (
		data, name string
		ttl        time.Duration
		asJSON     bool
	)
	cmd := &cobra.Command{
		Use:   "create --agent NAME",
		Short: "create a one-time join token",
		Long: `Create a token with which the agent NAME joins, once. What is printed belongs into
its agent.yaml: the token, and the pin by which it knows the broker's CA.`,
		Example: "  broker token create --agent gke-prod",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl <= 0 {
				return usagef("--ttl %s: must be above 0", ttl)
			}
			authority, err := loadCA(data)
			if err != nil {
				return err
			}
			token, err := openTokens(data).Create(name, ttl)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Agent   string    `json:"agent"`
					Token   string    `json:"token"`
					CA      string    `json:"ca"`
					Expires time.Time `json:"expires"`
				}{name, token, authority.Pin(), time.Now().Add(ttl).UTC().Truncate(time.Second)})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "broker: for agent %s, once, within %s\n", name, ttl)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "token: %s\nca: %s\n", token, authority.Pin())
			return err
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&name, "agent", "", "the agent's `NAME`")
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token is good for")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagRequired("agent")
	return cmd
}

func encodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
