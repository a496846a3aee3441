package images

import "testing"

func TestAnImageIsFoundWithoutItsTagUnlessTheTagHasItsOwn(t *testing.T) {
	catalogue := Catalogue{"registry:5000/app": {User: 1}, "registry:5000/app:v2": {User: 2}}
	for reference, user := range map[string]int64{
		"registry:5000/app": 1, "registry:5000/app:v1": 1, "registry:5000/app:v2": 2, "registry:5000/app@sha256:00": 1,
	} {
		if image, err := catalogue.Find(reference); err != nil || image.User != user {
			t.Errorf("%s: %v %v", reference, image.User, err)
		}
	}
	if _, err := catalogue.Find("app"); err == nil {
		t.Error("another registry's image is found")
	}
}
