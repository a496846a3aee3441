package pod

import (
	"fmt"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"heddle.dev/tests/kubernetes/internal/container"
	"heddle.dev/tests/kubernetes/internal/images"
)

// describe says what is started for the container, or why it cannot be with a reason for its status.
func (one *supervised) describe() (container.Spec, string, error) {
	const wrong = "CreateContainerConfigError"
	worker, pod := one.worker, one.worker.seen()
	image, err := worker.host.Images.Find(one.spec.Image)
	if err != nil {
		return container.Spec{}, "ErrImagePull", err
	}
	variables, err := worker.environment(pod, one.spec, image)
	if err != nil {
		return container.Spec{}, wrong, err
	}
	expand := func(text string) string { return expansion.Expand(text, expansion.MappingFuncFor(variables.values)) }
	credentials, err := credentials(pod, one.spec, image)
	if err != nil {
		return container.Spec{}, wrong, err
	}
	mounts, err := worker.volumes.Mounts(pod, one.spec, expand)
	if err != nil {
		return container.Spec{}, wrong, err
	}
	names := []container.Mount{
		{Source: filepath.Join(worker.directory, "hosts"), Target: "/etc/hosts"},
		{Source: filepath.Join(worker.directory, "hostname"), Target: "/etc/hostname"},
		{Source: filepath.Join(worker.directory, "resolv.conf"), Target: "/etc/resolv.conf"},
	}
	spec := container.Spec{
		// A restarted container starts with a fresh root.
		Directory:        filepath.Join(worker.directory, "containers", one.spec.Name+"."+strconv.Itoa(one.attempt())),
		Machine:          image.Root != images.RootScratch,
		Files:            image.Files,
		Mounts:           append(names, mounts...),
		Hostname:         worker.hostname(pod),
		Env:              variables.list(),
		WorkingDirectory: one.spec.WorkingDir,
		Credentials:      credentials,
	}
	if context := one.spec.SecurityContext; context != nil && context.ReadOnlyRootFilesystem != nil {
		spec.ReadOnly = *context.ReadOnlyRootFilesystem
	}
	entrypoint, command := image.Entrypoint, image.Command
	if len(one.spec.Command) > 0 {
		entrypoint, command = one.spec.Command, nil
	}
	if len(one.spec.Args) > 0 {
		command = one.spec.Args
	}
	for _, part := range entrypoint {
		spec.Args = append(spec.Args, expand(part))
	}
	for _, part := range command {
		spec.Args = append(spec.Args, expand(part))
	}
	if len(spec.Args) == 0 {
		return container.Spec{}, wrong, fmt.Errorf("neither the image %q nor the pod names a program", one.spec.Image)
	}
	return spec, "", nil
}

// attempt numbers the starts of the container.
func (one *supervised) attempt() int {
	one.worker.mutex.Lock()
	defer one.worker.mutex.Unlock()
	return int(one.restarts)
}

// credentials are those of the pod, the container and the image, in the order of their precedence.
func credentials(pod *corev1.Pod, spec *corev1.Container, image images.Image) (container.Credentials, error) {
	user, group := image.User, image.Group
	nonRoot := false
	result := container.Credentials{}
	if context := pod.Spec.SecurityContext; context != nil {
		override(&user, context.RunAsUser)
		override(&group, context.RunAsGroup)
		override(&nonRoot, context.RunAsNonRoot)
		for _, one := range context.SupplementalGroups {
			result.Groups = append(result.Groups, uint32(one))
		}
		if context.FSGroup != nil {
			result.Groups = append(result.Groups, uint32(*context.FSGroup))
		}
	}
	privileged := false
	var add, drop []string
	if context := spec.SecurityContext; context != nil {
		override(&user, context.RunAsUser)
		override(&group, context.RunAsGroup)
		override(&nonRoot, context.RunAsNonRoot)
		override(&privileged, context.Privileged)
		if context.AllowPrivilegeEscalation != nil {
			result.NoNewPrivileges = !*context.AllowPrivilegeEscalation
		}
		if context.Capabilities != nil {
			add, drop = names(context.Capabilities.Add), names(context.Capabilities.Drop)
		}
	}
	if nonRoot && user == 0 {
		return result, fmt.Errorf("container has runAsNonRoot and image %q will run as root", spec.Image)
	}
	capabilities, err := container.Capabilities(privileged, add, drop)
	if err != nil {
		return result, err
	}
	result.User, result.Group, result.Capabilities = uint32(user), uint32(group), capabilities
	return result, nil
}

func override[T any](value *T, with *T) {
	if with != nil {
		*value = *with
	}
}

func names(capabilities []corev1.Capability) []string {
	result := make([]string, len(capabilities))
	for index, capability := range capabilities {
		result[index] = string(capability)
	}
	return result
}
