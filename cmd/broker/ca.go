package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"example.com/broker/broker/identity"
	"github.com/spf13/cobra"
)

func ca() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "issue client certificates from the broker's CA, and rotate it",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(caIssue(), caShow(), caRotate())
	return cmd
}

func caIssue() *cobra.Command {
	var (
		data, user, out string
		groups          []string
		ttl             time.Duration
	)
	cmd := &cobra.Command{
		Use:   "issue --user USER --group GROUP --out FILE",
		Short: "issue a client certificate",
		Long: `Issue a client certificate from the broker's CA. FILE holds the certificate, its
key and the CA's certificate in one PEM: all that broker connect needs.`,
		Example: "  broker ca issue --user ada --group data-analysts --out ada.pem",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if ttl <= 0 || ttl > maxTTL {
				return usagef("--ttl %s: must be above 0 and at most %s", ttl, maxTTL)
			}
			authority, err := loadCA(data)
			if err != nil {
				return err
			}
			key, err := identity.NewKey()
			if err != nil {
				return err
			}
			id := identity.Identity{Subject: user, Groups: groups}
			der, err := authority.IssueUser(id, key.Public(), ttl)
			if err != nil {
				return err
			}
			leaf, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			if err := noteEvent(data, leaf.SerialNumber.Text(16), issuedEvent(id, leaf)); err != nil {
				return err
			}
			bundle, err := identity.Bundle(key, der, authority.Roots())
			if err != nil {
				return err
			}
			return identity.WritePrivate(out, bundle)
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&user, "user", "", "the subject, `NAME`")
	cmd.Flags().StringSliceVar(&groups, "group", nil, "a group of the subject, `NAME`; may be given several times")
	cmd.Flags().StringVar(&out, "out", "", "write to `FILE`, mode 0600")
	cmd.Flags().DurationVar(&ttl, "ttl", 8*time.Hour, "how long the certificate is valid")
	cmd.MarkFlagRequired("user")
	cmd.MarkFlagRequired("out")
	cmd.MarkFlagFilename("out", "pem")
	return cmd
}

// maxTTL bounds a client certificate's life: nothing takes one back earlier.
const maxTTL = 90 * 24 * time.Hour

func caShow() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "print the CA's certificate, or both while it is rotated",
		Example: "  broker ca show > ca.pem",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			authority, err := loadCA(data)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "broker: pin", authority.Pin())
			if authority.Rotating() {
				fmt.Fprintln(cmd.ErrOrStderr(), "broker: the CA is being rotated; the first certificate is the new one")
			}
			_, err = cmd.OutOrStdout().Write(authority.Roots())
			return err
		},
	}
	addData(cmd, &data)
	return cmd
}

// overlap is how long both CAs count at the least: what an agent's certificate
// lasts, so that each has renewed it, or has to join again anyway.
const overlap = 7 * 24 * time.Hour

func caRotate() *cobra.Command {
	var (
		data          string
		finish, force bool
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "replace the CA, with an overlap",
		Long: `Begin to replace the broker's CA: a new one issues to clients and agents from now
on, and both count. What the broker shows still comes from the old one; agents
learn the new one when they renew, people when they sign in. After 7 days,
rotate --finish ends the overlap: the old CA, and what it issued, counts no more.
A running broker takes up both steps by itself.`,
		Example: "  broker ca rotate\n  broker ca rotate --finish",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if force && !finish {
				return usagef("--force is for --finish")
			}
			if _, err := loadCA(data); err != nil {
				return err
			}
			if finish {
				err := identity.Retire(data, overlap, force)
				if errors.Is(err, identity.ErrRotating) && !force {
					return hinted{err, "with --force it is finished all the same: who knows the old CA only has to join or sign in again"}
				}
				return err
			}
			if err := identity.Rotate(data); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "broker: the new CA issues from now on; finish with broker ca rotate --finish after %s\n", time.Now().Add(overlap).Format(time.DateTime))
			return nil
		},
	}
	addData(cmd, &data)
	cmd.Flags().BoolVar(&finish, "finish", false, "end the overlap")
	cmd.Flags().BoolVar(&force, "force", false, "end it early, when the old CA's key is lost or stolen")
	return cmd
}

// loadCA opens the CA of a broker that has been started once.
func loadCA(data string) (*identity.CA, error) {
	if err := checkData(data); err != nil {
		return nil, err
	}
	authority, err := identity.LoadCA(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hinted{fmt.Errorf("data folder %s: holds no CA", data), "broker serve makes one on its first start"}
	}
	return authority, err
}
