package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// look is how often a log that is followed is looked at.
const look = 50 * time.Millisecond

// writeLog writes the last lines of a log, or all of it if there is no number,
// and then what is added until the container has ended.
func writeLog(ctx context.Context, writer http.ResponseWriter, path, lines string, follow bool, ended <-chan struct{}) error {
	file, err := os.Open(path)
	if os.IsNotExist(err) {
		http.Error(writer, "the container has not started yet", http.StatusBadRequest)
		return nil
	}
	if err != nil {
		http.Error(writer, err.Error(), http.StatusInternalServerError)
		return err
	}
	defer file.Close()
	if lines != "" {
		count, err := strconv.Atoi(lines)
		if err != nil {
			http.Error(writer, fmt.Sprintf("tailLines: %v", err), http.StatusBadRequest)
			return nil
		}
		if err := seekLines(file, count); err != nil {
			return err
		}
	}
	for {
		// What is written before the end was seen is still sent.
		last := !follow
		select {
		case <-ended:
			last = true
		default:
		}
		if _, err := io.Copy(writer, file); err != nil || last {
			return err
		}
		if flusher, ok := writer.(http.Flusher); ok {
			flusher.Flush()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
		case <-time.After(look):
		}
	}
}

// seekLines goes to where the last lines of a file begin.
func seekLines(file *os.File, count int) error {
	position, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	// The end of the last line does not begin another.
	newlines := -1
	for position > 0 {
		length := min(position, int64(len(block)))
		position -= length
		if _, err := file.ReadAt(block[:length], position); err != nil {
			return err
		}
		text := block[:length]
		for {
			index := bytes.LastIndexByte(text, '\n')
			if index < 0 {
				break
			}
			newlines++
			if newlines == count {
				_, err := file.Seek(position+int64(index)+1, io.SeekStart)
				return err
			}
			text = text[:index]
		}
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}
